"""Isthmus carries a safety intervention from one language model to another, with evidence.

The verbs of the command line are functions here, with the same names and parameters:

>>> import isthmus
>>> "run" in isthmus.__all__
True
"""

import importlib
from typing import Any

_VERBS = {
    "build_organism": "workflows.organism_build",
    "capture": "workflows.capture",
    "demo": "workflows.run",
    "evaluate": "workflows.evaluate",
    "fine_tune_organism": "workflows.organism_build",
    "generate": "workflows.generate",
    "inspect": "workflows.inspect",
    "learn_direction": "workflows.learn_direction",
    "learn_map": "workflows.learn_map",
    "learn_probe": "workflows.learn_probe",
    "learn_subspace": "workflows.learn_subspace",
    "learn_switch": "workflows.learn_switch",
    "report": "workflows.report",
    "reproduce": "studies.reproduce",
    "run": "workflows.run",
    "sweep": "workflows.sweep",
    "transfer": "workflows.transfer",
    "transfer_switch": "workflows.transfer_switch",
}

__all__ = sorted(_VERBS)  # noqa: PLE0605 - the names of one table


def __getattr__(name: str) -> Any:
    """Imports a verb when it is first used: the command line's help does not wait for torch."""
    if name not in _VERBS:
        raise AttributeError(f"isthmus has no {name!r}: there are {', '.join(__all__)}")
    module = importlib.import_module(f"isthmus.{_VERBS[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *_VERBS]
