from collections.abc import Sequence

import pytest
import torch
from tests.workflows.small import SOURCE, TARGET

import isthmus
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe import Probe
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.gate_measuring import READS, Gate, GatedPrompts
from isthmus.studies.gate_study import study_gate
from isthmus.studies.result import StudyResult
from isthmus.workflows.arms import intervention_for
from isthmus.workflows.config import make_config
from isthmus.workflows.gating import KINDS
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import read_splits

BRIEF = {"n_train": 40, "n_validation": 12, "n_test": 24}


@pytest.fixture(scope="module")
def found() -> StudyResult:
    torch.set_num_threads(1)
    return study_gate(SOURCE, TARGET, n_nulls=2, strength=2.0, settings=BRIEF)


def values(found: StudyResult, edit: str | None, metric: str, **wanted: object) -> list[float]:
    return [
        m.value
        for m in found.measurements
        if (m.edit, m.metric) == (edit, metric)
        and all(getattr(m, name) == value for name, value in wanted.items())
    ]


def test_a_carried_gate_opens_for_what_brings_the_behaviour_about_and_for_little_else(found):
    name, condition = "add, gate pulled back", "transferred"
    by_kind = [
        values(found, name, "gate_open_rate", condition=condition, task=f"gate/{kind}")[0]
        for kind in KINDS
    ]
    assert by_kind[0] > 0.9
    assert max(by_kind[1:]) < 0.1


def test_behind_it_the_edit_works_as_without_it_and_spares_the_rest(found):
    gated = "add, gate pulled back"
    for metric in ("recovery", "behaviour_rate", "answer_accuracy"):
        (without,) = values(found, "add", metric)
        (behind,) = values(found, gated, metric, condition="transferred")
        assert behind == pytest.approx(without, abs=0.1)
    (before,) = values(found, None, "benign_accuracy", condition="none")
    (without,) = values(found, "add", "benign_accuracy")
    (behind,) = values(found, gated, "benign_accuracy", condition="transferred")
    assert without < behind == pytest.approx(before, abs=0.05)
    (kl,) = values(found, gated, "benign_kl", condition="transferred")
    assert kl < values(found, "add", "benign_kl")[0] / 5


def test_gates_that_came_through_maps_that_know_nothing_stand_beside_it(found):
    ignorant = {"condition": "random", "task": "gate/triggered"}
    rates = values(found, "add, gate pulled back", "gate_open_rate", **ignorant)
    assert len(rates) == 4
    assert sum(rates) / 4 < 0.7
    (shuffled, other) = values(
        found,
        "add, gate pulled back",
        "gate_open_rate",
        condition="shuffled_map",
        task="gate/plain",
    )
    assert shuffled + other < 1


def test_without_an_edit_nothing_is_done_and_no_gate_is_counted(found):
    assert values(found, None, "recovery") == [0.0]
    assert values(found, None, "benign_kl") == [0.0]
    assert not values(found, None, "gate_open_rate")
    assert not values(found, "add", "gate_open_rate")


def test_a_gate_that_never_met_a_sort_of_prompt_answers_it_by_luck():
    """Of a request about something harmless it was told nothing but requests."""
    ends = ("organism:llama-assistant", "organism:qwen2-assistant")
    settings = {"n_train": 24, "n_validation": 4, "n_test": 8, "task": "refusal"}
    about = {"task": "gate/refusal/plain", "condition": "native"}
    rates = [
        values(
            study_gate(*ends, knows_plain=knows, n_nulls=0, settings=settings),
            "add, gate of own labels",
            "gate_open_rate",
            **about,
        )[0]
        for knows in (True, False)
    ]
    assert rates[0] < 0.1
    assert rates[0] <= rates[1]


def test_what_it_puts_together_is_what_generate_writes_behind_the_gate():
    config = make_config({"source": TARGET, "target": TARGET, **BRIEF})
    splits, lm = read_splits(config), load_language_model(TARGET)
    site = lm.site(1)
    direction = learn_twin_direction(lm, splits.train, [site], "last:3", config)
    intervention = intervention_for(direction, "add", "last:3", 1.0, "removal")
    asked = splits.test[:8]
    tested = GatedPrompts.read(lm, asked, intervention, site, 64)
    states = tested.states["triggered"]
    # Open for some of the triggered prompts.
    unit = torch.nn.functional.normalize(states[0] - states.mean(0), dim=0)
    probe = Probe(unit, float((states @ unit).median()))
    gate = Gate("native", "gate", None, 0, ModelProbe(probe, (site,), READS, lm.identity))
    is_open = tested.open_by(gate)["triggered"]
    assert 0 < is_open.sum() < len(is_open)
    plain, edited = tested.completions
    expected = [b if opened else a for opened, a, b in zip(is_open, plain, edited, strict=True)]
    assert said_behind(lm, asked, direction, gate) == expected


def said_behind(lm: LanguageModel, twins: Sequence[TwinPrompt], direction, gate) -> list[str]:
    done = isthmus.generate(
        lm, [twin.triggered for twin in twins], direction=direction, gate=gate.probe
    )
    return list(done.completions)
