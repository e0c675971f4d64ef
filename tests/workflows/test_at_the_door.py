"""What a verb refuses before it loads a model: the models here do not exist."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.workflows.small import save_tiny, write_contrast, write_world_questions

import isthmus
from isthmus.core.errors import ConfigError, OutputError, StrengthError
from isthmus.core.sites import Site
from isthmus.workflows.config import make_config

NOWHERE = "organism:nowhere"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_contrast(tmp_path / "contrast.jsonl")
    write_world_questions(tmp_path / "texts.jsonl")
    return tmp_path


def learn_direction(files: Path, **asked: Any) -> None:
    isthmus.learn_direction(NOWHERE, files / "contrast.jsonl", **asked)


def learn_subspace(files: Path, **asked: Any) -> None:
    isthmus.learn_subspace(NOWHERE, files / "contrast.jsonl", **asked)


def learn_map(files: Path, **asked: Any) -> None:
    isthmus.learn_map(NOWHERE, NOWHERE, files / "texts.jsonl", target_site=1, **asked)


def learn_switch(_files: Path, **asked: Any) -> None:
    isthmus.learn_switch(NOWHERE, NOWHERE, **asked)


def transfer_switch(_files: Path, **asked: Any) -> None:
    isthmus.transfer_switch(NOWHERE, NOWHERE, **asked)


def evaluate(files: Path, **asked: Any) -> None:
    isthmus.evaluate(NOWHERE, files / "direction", **asked)


def transfer(files: Path, **asked: Any) -> None:
    isthmus.transfer(files / "direction", files / "map", **asked)


def generate(files: Path, **asked: Any) -> None:
    isthmus.generate(NOWHERE, "Who?", **({"direction": files / "direction"} | asked))


def fine_tune(files: Path, **asked: Any) -> None:
    isthmus.fine_tune_organism(NOWHERE, **({"out": files / "made"} | asked))


def learn_probe(files: Path, **asked: Any) -> None:
    isthmus.learn_probe(NOWHERE, files / "contrast.jsonl", **asked)


WRITERS = [
    learn_direction,
    learn_subspace,
    learn_map,
    learn_probe,
    learn_switch,
    transfer_switch,
    evaluate,
    transfer,
    fine_tune,
]


@pytest.mark.parametrize("verb", WRITERS)
def test_a_place_that_is_taken_is_refused_before_any_work(files: Path, verb: Callable[..., None]):
    (files / "taken").mkdir()
    (files / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="taken"):
        verb(files, out=files / "taken")
    with pytest.raises(OutputError, match="cannot write to"):
        verb(files, out=files / "texts.jsonl" / "below-a-file")
    assert (files / "taken" / "thesis.txt").read_text() == "mine"


MISSPELT = [
    ("learn_direction", "contrast.jsonl", {"method": "Mean"}),
    ("learn_map", "texts.jsonl", {"map": "Ridge"}),
    ("learn_map", "texts.jsonl", {"pairing": "Index"}),
    ("learn_switch", None, {"to": "Base"}),
    ("learn_switch", None, {"method": "foo"}),
    ("transfer_switch", None, {"to": "Clean"}),
    ("evaluate", "direction", {"edit": "subtract"}),
    ("generate", "Who?", {"edit": "subspace"}),
    ("generate", "Who?", {"edit": "Ablate"}),
    ("generate", "Who?", {"way": "Induction"}),
    ("fine_tune_organism", "made", {"method": "foo"}),
]

_CALL_ALL = """
import json, sys
import isthmus
for verb, given, asked in json.loads(sys.argv[1]):
    models = ["organism:nowhere"] * (2 if verb.endswith(("map", "switch")) else 1)
    more = {"target_site": 1} if verb == "learn_map" else {}
    try:
        getattr(isthmus, verb)(*models, *([given] if given else []), **asked, **more)
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def test_a_misspelt_word_is_an_error_and_never_another_meaning(files: Path):
    # In a process of its own: here beartype would refuse the word before isthmus sees it.
    command = [sys.executable, "-c", _CALL_ALL, json.dumps(MISSPELT)]
    done = subprocess.run(  # noqa: S603 - our own interpreter, our own text
        command, capture_output=True, text=True, check=True, timeout=120, cwd=files
    )
    refused = [json.loads(line) for line in done.stdout.splitlines()]
    for (verb, _, asked), (error, message) in zip(MISSPELT, refused, strict=True):
        (given,) = asked.values()
        assert (verb, error) == (verb, "ConfigError")
        assert given in message


@pytest.mark.parametrize(
    "asked", [{"strength": 3.0}, {"positions": "all"}, {"site": 1}, {"edit": "ablate"}]
)
def test_settings_of_an_intervention_that_no_prompt_has_are_refused(files: Path, asked: Any):
    with pytest.raises(ConfigError, match="no prompt has a direction"):
        generate(files, direction=None, **asked)


@pytest.mark.parametrize("edit", ["ablate", "replace"])
def test_a_strength_is_refused_where_there_is_none(files: Path, edit: Any):
    with pytest.raises(StrengthError, match=f"with {edit}, which is done or not done"):
        generate(files, edit=edit, strength=2.0)
    with pytest.raises(StrengthError, match=f"with {edit}, which is done or not done"):
        evaluate(files, edit=edit, strength=2.0)


def test_a_seed_below_zero_and_a_target_named_twice_are_refused(files: Path):
    with pytest.raises(ConfigError, match="seed"):
        evaluate(files, seed=-1)
    with pytest.raises(ConfigError, match="is named twice"):
        make_config({"source": "one", "targets": ["two", "two"]})


def test_one_site_may_be_said_without_a_list(tmp_path: Path):
    model = save_tiny(tmp_path / "one")
    contrast = write_contrast(tmp_path / "contrast.jsonl")
    texts = write_world_questions(tmp_path / "texts.jsonl")
    for sites in (1, 0.6, Site(1)):
        assert isthmus.learn_direction(model, contrast, sites=sites).sites == (Site(1),)
    fitted = isthmus.learn_map(Path(model), model, texts, target_site=[0, 1], source_sites=1)
    assert (fitted.source_sites, fitted.target_sites) == ((Site(1),), (Site(0), Site(1)))
