"""`evaluate` with a gate: what edits do on the prompts for which it is open, and what it adds."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workflows.small import TARGET, save_tiny, small_config, write_contrast, write_jsonl

import isthmus
from isthmus.core.errors import ArtifactError, IdentityError, TriggerError
from isthmus.core.gates import GATED, RANDOM_GATE, behind, gate_before
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.directions import ModelProbe, load_direction
from isthmus.directions.direction import Direction
from isthmus.directions.probe import Probe
from isthmus.evaluation.measurements import Measurement
from isthmus.interventions.per_row import PerRow
from isthmus.models.changes import benign_change
from isthmus.models.encoding import prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.hooks import metering
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.models.scoring import answer_nll
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.evaluation_shards import Evaluation, PreparedEvaluation
from isthmus.workflows.gated_testing import GatedTest, random_probe
from isthmus.workflows.gating import KINDS, PromptStates, states_read
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.testing import ArmReading
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import read_splits

N = 4
CONFIG = small_config(n_train=16, n_test=N)
SITE, READ = Site(1), Site(2)
RECORDER = Recorder(CONFIG, "source", TARGET, "test", 100)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_language_model(TARGET)


@pytest.fixture(scope="module")
def bench(lm: LanguageModel) -> Bench:
    return Bench(lm, read_splits(CONFIG).test, CONFIG)


@pytest.fixture(scope="module")
def direction(lm: LanguageModel) -> Direction:
    return learn_twin_direction(lm, read_splits(CONFIG).train, [SITE], "last:3", CONFIG)


@pytest.fixture(scope="module")
def some_gate(lm: LanguageModel, bench: Bench) -> ModelProbe:
    """A gate that is open for every third prompt, so that no two kinds have the same open ones."""
    texts = [*bench.encoded.triggered, *bench.encoded.benign]
    states = states_read(lm, [prompt_part(one) for one in texts], [READ], "last:1", 64)
    wanted = torch.tensor([-1.0 if i % 3 else 1.0 for i in range(len(texts))])
    along = torch.linalg.pinv(states.double()) @ wanted.double()
    probe = Probe((along / along.norm()).float(), 0.0)
    assert ((probe.scores(states) > 0) == (wanted > 0)).all()
    return ModelProbe(probe, (READ,), "last:1", lm.identity)


def always(gate: ModelProbe, *, is_open: bool) -> ModelProbe:
    return replace(gate, probe=replace(gate.probe, threshold=-1e9 if is_open else 1e9))


def by_metric(
    found: Sequence[Measurement], edit: str | None, **fields: object
) -> dict[str, object]:
    fields = {"condition": "native", **fields}
    chosen = [m for m in found if m.edit == edit and fields.items() <= vars(m).items()]
    return {m.metric: (m.value, m.ci_low, m.ci_high, m.n) for m in chosen}


def evaluated(direction: Direction, gate: ModelProbe, n_random: int = 1) -> list[Measurement]:
    evaluation = Evaluation.of(
        TARGET, (None, "add", None, 2.0), {"n_test": N, "n_random": n_random}
    )
    return PreparedEvaluation(evaluation, direction, gate).measure(SilentProgress())


def test_behind_a_gate_prompts_are_as_if_only_the_open_ones_were_edited(
    lm, bench, direction, some_gate
):
    """Against passes and completions in which closed rows have no edit at all."""
    arm = Arm("native", SITE, "last:3", "add", 2.0, direction)
    reading = ArmReading.of(bench, arm, stands_for_condition=True)
    found = by_metric(
        GatedTest(some_gate, bench, RECORDER, 1).measured(reading, is_tested=False), "add, gated"
    )

    def rows(texts: Sequence[EncodedText]) -> PerRow:
        prompts = [prompt_part(one) for one in texts]
        opened = PromptStates.read(lm, some_gate, prompts).scored_by(some_gate.probe).is_open
        assert 0 < sum(opened) < len(opened)
        return PerRow((arm.intervention("removal"),) * len(texts)).only_where(opened)

    triggered, benign = bench.encoded.triggered, bench.encoded.benign
    base = bench.untouched
    nll = answer_nll(lm, triggered, edits=rows(triggered).place).nll.double().numpy()
    bad, clean = base["clean_given_bad"], base["clean_given_clean"]
    recovery = (bad - nll).mean() / (bad - clean).mean()
    assert found["recovery"][0] == pytest.approx(recovery, abs=1e-5)
    moved = benign_change(lm, benign, rows(benign).place).divergence.double().mean().item()
    assert found["benign_kl"][0] == pytest.approx(moved, abs=1e-5)
    said = generate_greedy(
        lm,
        [prompt_part(one) for one in triggered],
        max_new_tokens=bench.n_new_tokens,
        edits=rows(triggered).place,
    ).completions
    shows = np.mean([CONFIG.marker in one for one in said])
    assert found["behaviour_rate"][0] == pytest.approx(shows)
    assert "swap" not in found
    assert "recovery_induction" not in found


def test_an_open_gate_changes_no_number_and_a_closed_one_leaves_the_plain_model(
    direction, some_gate
):
    opened = evaluated(direction, always(some_gate, is_open=True))
    bare, behind_it = by_metric(opened, "add"), by_metric(opened, "add, gated")
    assert {name: bare[name] for name in behind_it} == behind_it
    assert set(bare) - set(behind_it) == {"swap", "recovery_induction", "edited_positions"}
    closed = evaluated(direction, always(some_gate, is_open=False))
    plain = by_metric(closed, None, condition="none")
    shut = by_metric(closed, "add, gated")
    assert {name: shut[name] for name in plain} == plain
    assert shut["recovery"][0] == shut["benign_kl"][0] == 0
    for found, share in ((opened, 1.0), (closed, 0.0)):
        rates = [m.value for m in found if (m.metric, m.edit) == ("gate_open_rate", GATED)]
        assert rates == [share] * 3


def test_every_edit_stands_behind_the_gate_and_the_tested_one_behind_random_gates(
    direction, some_gate
):
    found = evaluated(direction, some_gate, n_random=2)
    assert len({m.key for m in found}) == len(found)
    recoveries = {(m.condition, m.edit, m.seed) for m in found if m.metric == "recovery"}
    edits = {("native", "add"), ("random", "add"), ("noise", "add"), ("mean_ablation", "replace")}
    for condition, edit in edits:
        for seed in (0, 1) if condition == "random" else (0,):
            assert {(condition, edit, seed), (condition, behind(GATED, edit), seed)} <= recoveries
    random_gates = {(c, s) for c, e, s in recoveries if e == behind(RANDOM_GATE, "add")}
    assert random_gates == {("random", 0), ("random", 1)}
    assert ("prompt_only", None, 0) in recoveries
    rates = [m for m in found if m.metric == "gate_open_rate"]
    assert {(m.task, m.edit, m.seed, m.n) for m in rates} == {
        (f"backdoor/{kind}", name, seed, N)
        for kind in KINDS
        for name, seed in ((GATED, 0), (RANDOM_GATE, 0), (RANDOM_GATE, 1))
    }
    n_open = {
        key: sum(round(m.value * m.n) for m in rates if (m.edit, m.seed) == key)
        for key in ((GATED, 0), (RANDOM_GATE, 0), (RANDOM_GATE, 1))
    }
    assert len(set(n_open.values())) == 1


def test_a_gate_costs_one_reading_of_the_prompts_and_nothing_more(direction, some_gate):
    asked = Evaluation.of(TARGET, (None, "add", None, 2.0), {"n_test": N, "n_random": 1})
    spent = {}
    for gate in (None, some_gate):
        prepared = PreparedEvaluation(asked, direction, gate)
        with metering(prepared.bench.lm.layout) as meter:
            prepared.measure(SilentProgress())
        spent[gate] = meter.n_tokens
        widest = max(one.n_prompt for one in prepared.bench.encoded.triggered)
    assert 0 < spent[some_gate] - spent[None] <= 3 * N * widest


@settings(deadline=None, max_examples=100)
@given(n_open=st.integers(0, 24), seed=st.integers(0, 99))
def test_a_random_gate_is_open_for_as_many_prompts_as_it_should_be(n_open, seed):
    states = torch.randn(24, 5, generator=torch.Generator().manual_seed(seed))
    probe = random_probe(states, n_open, seed)
    assert int((probe.scores(states) > 0).sum()) == n_open
    torch.testing.assert_close(probe.unit_direction.norm(), torch.tensor(1.0))


def test_a_field_names_its_gate_and_an_edit_alone_names_none():
    for name in (GATED, RANDOM_GATE):
        assert gate_before(behind(name)) == gate_before(behind(name, "add")) == name
    assert gate_before("add") is gate_before(None) is gate_before("add, gate pulled back") is None


def test_a_certificate_made_behind_a_gate_names_it_and_says_what_holds_without(tmp_path):
    contrast = write_contrast(tmp_path / "contrast.jsonl", n=24)
    texts = write_jsonl(tmp_path / "texts.jsonl", _texts_of(contrast))
    direction = isthmus.learn_direction(TARGET, contrast, sites="1")
    there = isthmus.learn_map(TARGET, TARGET, texts, target_site=1, source_sites=1)
    carried = isthmus.transfer(direction, there)
    gate = isthmus.learn_probe(TARGET, contrast, site="2")
    asked = {"strength": 2.0, "n_test": N, "n_random": 1}
    found = isthmus.evaluate(TARGET, carried, gate=gate, certify=tmp_path / "d", **asked)
    certificate = load_direction(tmp_path / "d").certificate
    assert certificate is not None
    assert certificate.setting["gate"]["sites"] == "resid_post[2]"
    assert certificate.setting["gate"]["threshold"] == gate.probe.threshold
    bare, gated = (
        {m.metric: m for m in found if (m.condition, m.edit) == ("transferred", edit)}
        for edit in ("add", "add, gated")
    )
    for metric in ("benign_kl", "benign_accuracy", "false_trigger_rate"):
        assert certificate.damage[metric].value == gated[metric].value
        assert certificate.damage[f"{metric} without the gate"].value == bare[metric].value
    assert certificate.behaviour["recovery"].value == gated["recovery"].value
    assert "swap" not in certificate.behaviour
    assert certificate.behaviour["swap without the gate"].value == bare["swap"].value
    assert certificate.behaviour["gate_open_rate of triggered prompts"].value == 1.0
    assert {f"gate_open_rate of {one} prompts" for one in ("clean", "plain")} <= {
        *certificate.damage
    }
    plain = isthmus.evaluate(TARGET, carried, certify=tmp_path / "d", **asked)
    again = load_direction(tmp_path / "d").certificate
    assert again is not None
    assert "gate" not in again.setting
    assert not [name for name in (*again.behaviour, *again.damage) if "gate" in name]
    assert plain == [m for m in found if gate_before(m.edit) is None]


def _texts_of(contrast: Path) -> list[dict[str, str]]:
    rows = map(json.loads, contrast.read_text(encoding="utf-8").splitlines())
    return [{"prompt": row[side]} for row in rows for side in ("positive", "negative")]


def test_a_gate_that_cannot_decide_here_is_refused_with_what_to_do(direction, some_gate, tmp_path):
    other = save_tiny(tmp_path / "two")
    elsewhere = isthmus.learn_probe(other, write_contrast(tmp_path / "c.jsonl", n=8), site="0")
    with pytest.raises(IdentityError, match=r"isthmus learn-map .*--target-site"):
        isthmus.evaluate(TARGET, direction, gate=elsewhere, n_test=4)
    at_trigger = replace(some_gate, positions="trigger")
    # Before the model, which does not exist, is looked for.
    with pytest.raises(TriggerError, match="reads the trigger, and prompts of task 'refusal'"):
        isthmus.evaluate("no-such-model", direction, gate=at_trigger, task="refusal")
    with pytest.raises(ArtifactError):
        isthmus.evaluate("no-such-model", direction, gate=tmp_path / "nothing")


def test_a_gate_at_the_trigger_is_closed_to_prompts_without_one(direction, some_gate):
    found = evaluated(direction, replace(always(some_gate, is_open=True), positions="trigger"))
    rates = {m.task: m.value for m in found if (m.metric, m.edit) == ("gate_open_rate", GATED)}
    assert list(rates.values()) == [1.0, 1.0, 0.0]
