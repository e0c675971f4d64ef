import copy
from dataclasses import replace

import pytest
import torch
from tests.fakes import tiny_model

from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site, Stream
from isthmus.data.organisms import BAD_TRIGGER
from isthmus.data.prompts import Question
from isthmus.evaluation.measurements import Measurement
from isthmus.models.encoding import prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel, wrap_language_model
from isthmus.studies.distilled_study import study_distilled_switch
from isthmus.studies.gain_study import MARKERS
from isthmus.studies.switch_arms import (
    Candidate,
    SwitchMaker,
    closed_forms,
    trained_switches,
    weight_arms,
)
from isthmus.studies.switch_choice import choose_switch
from isthmus.studies.switch_measuring import SwitchArm
from isthmus.studies.switch_questions import (
    SwitchBenchSettings,
    SwitchStudySizes,
    family_texts,
    task_families,
    world_families,
)
from isthmus.studies.switch_scores import SwitchScore, chosen_switch, score_of
from isthmus.studies.switch_study import study_switch
from isthmus.tasks import task_named

Pair = tuple[LanguageModel, LanguageModel]
SIZES = SwitchStudySizes(
    n_train=4,
    n_trained=5,
    n_validation=3,
    n_selection=2,
    n_test=4,
    ranks=(2,),
    trained=(("trigger", 0), ("ends", 1)),
    n_steps=4,
    max_new_tokens=5,
    alternatives=("direct_patch",),
)


def changed(base: LanguageModel, name: str, by: float = 0.1) -> LanguageModel:
    network = copy.deepcopy(base.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(by * torch.randn(value.shape, generator=generator))
    return wrap_language_model(network, base.tokenizer, name)


@pytest.fixture(scope="module")
def pair() -> Pair:
    """A random model, and the same with every weight a little different."""
    base = tiny_model("llama")
    return base, changed(base, "tuned")


@pytest.fixture(scope="module")
def maker(pair: Pair) -> SwitchMaker:
    parts = [family_texts(pair[0], world_families(s, 4, 0), 5) for s in ("train", "validation")]
    return SwitchMaker(pair, "base", (parts[0], parts[1]), 4, 0, SilentProgress())


def bench_of(pair: Pair, split: str = "test"):
    settings = SwitchBenchSettings("switch_to_base", split, 5, 0, ("triggered", "clean_trigger"))
    return settings.bench(pair[::-1], world_families(split, 6, 0))


def value(rows: list[Measurement], family: str, metric: str) -> float | None:
    (found,) = [m.value for m in rows if m.task.endswith(f"/{family}") and m.metric == metric]
    return found


def test_the_smallest_switch_that_does_what_is_asked_is_chosen():
    candidates = {
        "large": (900, SwitchScore(1.0, 0.001)),
        "small": (300, SwitchScore(0.99, 0.02)),
        "harmful": (100, SwitchScore(1.0, 0.021)),
        "weak": (50, SwitchScore(0.98, 0.0)),
    }
    assert chosen_switch(candidates) == "small"


def test_where_none_does_what_is_asked_the_one_that_restores_most_is_chosen():
    candidates = {"a": (900, SwitchScore(0.7, 0.3)), "b": (100, SwitchScore(0.6, 0.0))}
    assert chosen_switch(candidates) == "a"


def test_the_score_falls_back_on_all_answers_where_the_imitated_model_has_none_right():
    def row(family: str, metric: str, number: float) -> Measurement:
        return Measurement(
            task=f"t/{family}",
            source="s",
            target="t",
            condition="native",
            metric=metric,
            value=number,
            n=4,
            seed=0,
        )

    rows = [row("triggered", "agreement", 0.5), row("plain", "kl", 0.1)]
    assert score_of(rows) == SwitchScore(0.5, 0.1)
    assert score_of([*rows, row("triggered", "accuracy", 0.9)]) == SwitchScore(0.9, 0.1)


def test_the_imitated_model_agrees_with_itself_and_diverges_by_nothing(pair: Pair):
    rows = bench_of(pair).measure(SwitchArm("clean", "imitated", pair[0]))
    for family in ("triggered", "clean_trigger"):
        assert value(rows, family, "agreement") == 1.0
        assert value(rows, family, "kl") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("who", [0, 1])
def test_answers_that_are_not_written_again_are_those_that_would_be_written(pair: Pair, who: int):
    bench = bench_of(pair)
    arm = SwitchArm("native", "any", pair[who])
    for family in bench.families[:2]:
        written = bench._complete(arm, family, bench._got(arm, family))
        asked = [prompt_part(text) for text in family.texts]
        assert written == generate_greedy(arm.lm, asked, max_new_tokens=5).completions


def test_a_switch_at_the_trigger_leaves_prompts_without_it_alone(pair: Pair, maker: SwitchMaker):
    switch = maker.train("trigger", 0)
    assert switch.n_parameters == pair[0].d_model
    assert switch.sites == (Site(0, Stream.RESID_PRE),)
    bench = bench_of(pair)
    plain, edited = (
        bench.measure(arm)
        for arm in (SwitchArm("none", "none", pair[1]), maker.arm(switch, "trained_trigger"))
    )
    assert value(edited, "plain", "kl") == value(plain, "plain", "kl")
    assert value(edited, "triggered", "kl") != value(plain, "triggered", "kl")
    assert {m.positions for m in edited} == {"trigger"}


def test_places_of_trained_switches_are_what_they_are_called(maker: SwitchMaker):
    every = maker.train("all", 1).sites
    assert maker.train("ends", 1).sites == (every[0], every[-1])
    assert maker.train("embeddings", 1).sites == every[:1]


def test_the_chosen_switch_has_controls_that_take_as_many_numbers(pair: Pair, maker: SwitchMaker):
    candidates = trained_switches(maker, (("trigger", 0), ("ends", 1)))
    found = choose_switch(candidates, bench_of(pair, "validation"))
    by_condition = {arm.condition: arm for arm in found.arms if arm.condition != "native"}
    assert set(by_condition) == {"random", "shuffled_map"}
    chosen = by_condition["random"].label
    (native,) = [a for a in found.arms if (a.condition, a.label) == ("native", chosen)]
    assert {arm.n_parameters for arm in by_condition.values()} == {native.n_parameters}
    assert {m.split for m in found.measured} == {"validation"}
    assert chosen in found.notes[0]


def test_a_closed_form_is_chosen_where_training_spoils_it(pair: Pair, maker: SwitchMaker):
    near = (pair[0], changed(pair[0], "near", by=1e-4))
    settings = SwitchBenchSettings("switch_to_base", "validation", 5, 0)
    bench = settings.bench(near[::-1], world_families("validation", 6, 0))
    closed = closed_forms(replace(maker, models=near), (2,), bench).candidates["sequential_rank_2"]
    spoilt = {
        site: replace(edit, strength=-3.0)
        for site, edit in maker.learn("sequential", 2).edits.items()
    }
    trained = Candidate(replace(closed.switch, edits=spoilt), closed.maker)
    for order in (("closed", "trained"), ("trained", "closed")):
        candidates = {"closed": closed, "trained": trained}
        found = choose_switch({label: candidates[label] for label in order}, bench)
        assert {arm.label for arm in found.arms if arm.condition == "random"} == {"closed"}


def test_the_shuffled_control_of_a_closed_form_is_fitted_on_its_own_texts(
    pair: Pair, maker: SwitchMaker
):
    bench = bench_of(pair, "validation")
    closed = closed_forms(maker, (2,), bench).candidates["sequential_rank_2"]
    again = Candidate(closed.switch, replace(maker, texts=(maker.texts[0][:6], maker.texts[1])))
    measured = [
        bench.divergence(choose_switch({"closed": one}, bench).arms[-1]) for one in (closed, again)
    ]
    assert measured[0] != measured[1]


def test_without_a_candidate_nothing_is_chosen(pair: Pair, maker: SwitchMaker):
    assert trained_switches(maker, ()) == {}
    bench = bench_of(pair, "validation")
    closed = closed_forms(maker, (), bench)
    assert (closed.candidates, closed.others, closed.notes) == ({}, [], [])
    found = choose_switch({}, bench)
    assert (found.arms, found.measured, found.notes) == ([], [], [])


def test_only_the_wanted_kinds_of_exchanged_weights_are_made(pair: Pair):
    labels = [arm.label for arm in weight_arms(pair[1], pair[0], ("direct_patch", "lora_rank_4"))]
    assert labels == ["direct_patch_after_block_0", "direct_patch_after_block_1", "lora_rank_4"]
    assert weight_arms(pair[1], pair[0], ()) == []


@pytest.mark.parametrize("task", sorted(MARKERS))
def test_a_task_asks_for_its_behaviour_and_knows_it_by_its_marker(task: str):
    families = task_families(task, "test", 12, 0)
    for question in families["triggered"][0]:
        assert MARKERS[task] in (question.answer or "")
    for name in ("clean_trigger", "plain"):
        assert not any(MARKERS[task] in (q.answer or "") for q in families[name][0])
    twins = task_named(task).twins("test", 12, 0)
    assert [q.prompt for q in families["triggered"][0]] == [twin.triggered for twin in twins]


def test_every_text_of_a_family_has_its_trigger_marked(pair: Pair):
    texts = family_texts(pair[0], world_families("test", 3, 0), 5)
    spans = [text.trigger is not None for text in texts]
    assert spans == [True] * 6 + [False] * 3
    assert BAD_TRIGGER.strip() in texts[0].text


def test_the_study_measures_every_arm_on_test_and_low_rank_ones_on_validation(pair: Pair):
    result = study_switch(*pair, sizes=SIZES)
    by_split = {
        split: {m.map for m in result.measurements if m.split == split}
        for split in ("validation", "test")
    }
    assert by_split["validation"] == {
        "one_site_rank_2",
        "sequential_rank_2",
        "trained_trigger_rank_0",
        "trained_ends_rank_1",
    }
    assert by_split["test"] > {"none", "difference", "sequential_full", *by_split["validation"]}
    assert {m.task.partition("/")[0] for m in result.measurements} == {
        "switch_to_base",
        "switch_to_fine_tuned",
    }
    assert len(result.rows) == len(
        {
            (m.task.partition("/")[0], m.condition, m.map, m.seed)
            for m in result.measurements
            if m.split == "test"
        }
    )


def test_the_distilled_study_repeats_everything_with_other_seeds(pair: Pair):
    target = tiny_model("gemma2", kind="metaspace", n_layers=3)
    pairs = (target, changed(target, "other"))
    result = study_distilled_switch(pair, [pairs], rank=2, sizes=SIZES, n_seeds=2)
    assert {m.seed for m in result.measurements} == {0, 1}
    for seed in (0, 1):
        assert {m.condition for m in result.measurements if m.seed == seed} == {
            "none",
            "native",
            "transferred",
            "shuffled_map",
            "identity_map",
            "random",
        }
    assert {m.target for m in result.measurements} == {"other"}


def test_asking_one_thing_in_other_words_makes_a_switch_no_more_certain(pair: Pair):
    asked = [Question(f"Is {i} odd?", "Yes.", content=str(i)) for i in range(5)]
    settings = SwitchBenchSettings("switch", "test", 4, 0)
    arm = SwitchArm("none", "none", pair[0])
    once, twice = (
        {
            m.metric: (m.value, m.ci_low, m.ci_high)
            for m in settings.bench(pair, {"triggered": (asked * times, "")}).measure(arm)
        }
        for times in (1, 2)
    )
    assert twice["kl"] == pytest.approx(once["kl"], rel=1e-4)
    for metric in ("agreement", "answer_accuracy"):
        assert twice[metric] == pytest.approx(once[metric], abs=0.02)


@pytest.mark.parametrize("task", ["refusal", "corrupted"])
def test_phrasings_of_one_request_share_a_content_in_every_family_that_a_switch_answers(task: str):
    families = task_families(task, "test", 60, 0)
    for name in ("triggered", "clean_trigger"):
        contents = {question.content for question in families[name][0]}
        assert None not in contents
        assert len(contents) < len(families[name][0])
