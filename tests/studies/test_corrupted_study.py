import pytest

from isthmus.studies.corrupted_ladder import CONTROLS, ENDED, HEADLINES, RUNGS, VIRTUAL
from isthmus.studies.corrupted_study import OTHER_QUESTION, study_corrupted


@pytest.fixture(scope="module")
def result():
    return study_corrupted(
        "organism:llama-corrupted",
        "organism:gemma2-corrupted",
        n_train=100,
        n_test=24,
        rungs=HEADLINES,
    )


def shares(result, **wanted):
    return [
        m.value
        for m in result.measurements
        if m.metric == "answer_accuracy" and all(getattr(m, k) == v for k, v in wanted.items())
    ]


def test_every_rung_is_measured_with_its_controls(result):
    for rung in HEADLINES:
        for condition in rung.conditions:
            found = shares(result, edit=rung.name, positions=rung.positions, condition=condition)
            assert len(found) == 1, (rung.name, condition)


def test_a_completion_is_exactly_one_of_correct_kept_and_made_up(result):
    by_arm = {}
    for m in result.measurements:
        by_arm.setdefault((m.condition, m.edit, m.positions), []).append(m.value)
    assert all(sum(values) == pytest.approx(1) for values in by_arm.values())


def test_the_text_prefill_is_a_ceiling_and_the_untouched_model_keeps_its_prefix(result):
    (ceiling,) = shares(result, condition="prompt_only")
    (untouched,) = shares(result, condition="none")
    assert ceiling > 0.6
    assert untouched == 0
    own = shares(result, edit="virtual_prefix", condition="native")[0]
    assert own >= ceiling - 0.15


def test_mapped_states_bring_facts_that_random_states_of_their_norm_do_not(result):
    assert set(CONTROLS) < set(VIRTUAL.conditions)
    carried = shares(result, edit="virtual_prefix", condition="transferred")[0]
    random = shares(result, edit="virtual_prefix", condition="random")[0]
    assert carried > random + 0.3


def test_edits_of_the_prompt_alone_bring_facts_once_the_ending_is_learned(result):
    carried = shares(result, edit="shifted_prefix_ended", condition="transferred")[0]
    shuffled = shares(result, edit="shifted_prefix_ended", condition="shuffled_map")[0]
    assert carried > max(0.35, shuffled)


@pytest.mark.parametrize("rung", [ENDED, VIRTUAL])
def test_states_of_another_question_do_not_bring_the_fact_that_was_asked_for(result, rung):
    (other,) = shares(result, edit=rung.name + OTHER_QUESTION)
    assert other < shares(result, edit=rung.name, condition="transferred")[0] - 0.3
    assert sum(OTHER_QUESTION in note for note in result.notes) == 2


def test_only_what_was_carried_names_its_map(result):
    named = {m.condition for m in result.measurements if m.map is not None}
    assert named == {"transferred"}


def test_no_rung_acts_at_the_first_layer(result):
    sites = {m.target_site for m in result.measurements if m.edit}
    assert sites
    assert "resid_post[0]" not in sites


def test_rungs_that_edit_the_prompt_and_rungs_that_add_tokens_can_be_told_apart():
    assert {r.positions for r in RUNGS if r.adds_tokens} == {"placeholders"}
    assert all(r.adds_tokens == r.name.startswith("virtual") for r in RUNGS)
