from pathlib import Path
from typing import Any

import pytest
from tests.fakes import tiny_network, tiny_tokenizer

from isthmus.core.errors import OrganismError
from isthmus.core.progress import SilentProgress
from isthmus.models.language_model import load_language_model
from isthmus.models.organisms import pack_organism, shipped_organisms
from isthmus.workflows import organism_missing
from isthmus.workflows.competence import Competence
from isthmus.workflows.organism_build import BuiltOrganism
from isthmus.workflows.organism_missing import ensure_organisms, missing_organisms
from isthmus.workflows.organism_recipes import BASES, BUILDABLE, FINE_TUNES, recipe_named


class Listening(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def built_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "built"


def pack(name: str, folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    network = tiny_network("llama", n_vocab=len(tokenizer))
    pack_organism(folder / name, network, tokenizer, {"name": name, "base": None})


def test_shipped_recipes_and_buildable_ones_are_told_apart():
    assert {*BASES, *FINE_TUNES} == set(shipped_organisms())
    assert not set(BUILDABLE) & set(shipped_organisms())
    assert all(recipe_named(name) for name in BUILDABLE)


@pytest.mark.usefixtures("built_folder")
def test_what_ships_is_never_missing():
    assert missing_organisms([*BASES, *FINE_TUNES]) == ()
    assert ensure_organisms(["llama", "gemma2-assistant"]) == ()


def test_a_base_is_built_before_what_is_tuned_from_it_and_only_once(built_folder: Path):
    wanted = ["gemma2-bytes-backdoor", "llama", "gemma2-bytes-assistant"]
    assert missing_organisms(wanted) == ("gemma2-bytes", wanted[0], wanted[2])
    pack("gemma2-bytes", built_folder)
    assert missing_organisms(wanted) == (wanted[0], wanted[2])


@pytest.mark.usefixtures("built_folder")
def test_an_organism_without_a_recipe_is_refused():
    with pytest.raises(OrganismError, match="no recipe for organism 'mistral'"):
        missing_organisms(["llama", "mistral"])


def test_what_is_missing_is_named_with_the_time_it_takes_and_then_found(
    built_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def build(name: str, **_options: Any) -> BuiltOrganism:
        pack(name, built_folder)
        reached = Competence({}, 1, passes=True)
        return BuiltOrganism(name, built_folder / name, reached, 1, 1)

    monkeypatch.setattr(organism_missing, "build_organism", build)
    told = Listening()
    wanted = ["qwen2-metaspace-backdoor"]
    assert len(ensure_organisms(wanted, told)) == 2
    assert "qwen2-metaspace, qwen2-metaspace-backdoor; about" in told.notes[0]
    assert str(built_folder) in told.notes[0]
    assert ensure_organisms(wanted, told) == ()
    assert len(told.notes) == 3


@pytest.mark.usefixtures("built_folder")
def test_loading_one_that_is_not_built_says_how_to_build_it():
    with pytest.raises(OrganismError, match="'isthmus organism build qwen2-metaspace'"):
        load_language_model("organism:qwen2-metaspace")
