import inspect

import pytest

import isthmus

# The verbs of the command line, spelled as Python names.
DOCUMENTED_VERBS = [
    "build_organism",
    "capture",
    "demo",
    "evaluate",
    "fine_tune_organism",
    "generate",
    "inspect",
    "learn_direction",
    "learn_map",
    "learn_probe",
    "learn_subspace",
    "learn_switch",
    "report",
    "reproduce",
    "run",
    "sweep",
    "transfer",
    "transfer_switch",
]


def test_the_package_exports_exactly_the_documented_verbs() -> None:
    assert sorted(isthmus.__all__) == DOCUMENTED_VERBS


@pytest.mark.parametrize("verb", DOCUMENTED_VERBS)
def test_every_verb_is_a_documented_function(verb: str) -> None:
    function = getattr(isthmus, verb)
    assert callable(function)
    assert inspect.getdoc(function)
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty
