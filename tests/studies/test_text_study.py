import pytest

from isthmus.data.world import world_examples
from isthmus.models.language_model import load_language_model
from isthmus.studies.fitting_texts import (
    GENERAL,
    NO_REQUESTS,
    TASK_TEXT,
    WORDS,
    texts_for_maps,
    unlabelled_prompts,
)
from isthmus.studies.text_study import study_map_text
from isthmus.tasks import task_named
from isthmus.tasks.refusal import REFUSAL, is_declined

SOURCE = "organism:llama-assistant"
FEW = "general + 8 prompts"


@pytest.fixture(scope="module")
def result():
    return study_map_text(
        SOURCE,
        "organism:qwen2-assistant",
        "style",
        n_prompts=(8,),
        n_train=24,
        n_validation=4,
        n_test=12,
        n_random=1,
    )


def swaps(result, row: str) -> dict[str, float]:
    return {
        m.condition: m.value
        for m in result.measurements
        if m.metric == "swap" and m.task == f"map_text/style/{row}"
    }


def test_every_text_is_measured_with_controls_and_the_quality_of_its_map(result):
    for name in (TASK_TEXT, GENERAL, WORDS, FEW):
        assert set(swaps(result, name)) == {"transferred", "random", "shuffled_map"}
        metrics = {m.metric for m in result.measurements if m.task == f"map_text/style/{name}"}
        assert {"map_r2_held_out", "swap_loss", "benign_kl", "behaviour_rate"} <= metrics
    assert set(swaps(result, "native")) == {"native"}


def test_a_map_that_saw_the_task_does_more_than_one_that_saw_general_text(result):
    task, general = (swaps(result, name)["transferred"] for name in (TASK_TEXT, GENERAL))
    assert task > general + 0.1


def test_the_picture_shows_every_text(result):
    (svg,) = result.figures.values()
    for name in (TASK_TEXT, GENERAL, WORDS, FEW):
        assert name in svg


@pytest.fixture(scope="module")
def texts():
    lm = load_language_model(SOURCE)
    found = {}
    for task in ("refusal", "style"):
        twins = task_named(task).twins("train", 60, 0)
        found[task] = texts_for_maps(task, twins, lm, (8,), 0)
    return found


def test_general_texts_hold_nothing_of_the_task(texts):
    declined = [p for p, _ in texts["refusal"][GENERAL][0] if is_declined(p)]
    assert declined == []
    styled = [p for p, _ in texts["style"][GENERAL][0] if p.startswith("Speak like")]
    assert styled == []
    for parts in texts.values():
        assert all(answer != REFUSAL and answer for _, answer in parts[GENERAL][0])


def test_general_texts_without_requests_ask_not_how_to_do_anything(texts):
    requests = {e.prompt for e in world_examples("train", ("how_to",))}
    without = {prompt for prompt, _ in texts["refusal"][NO_REQUESTS][0]}
    assert requests & {prompt for prompt, _ in texts["refusal"][GENERAL][0]}
    assert not requests & without
    assert NO_REQUESTS not in texts["style"]


def test_random_words_hold_no_word_of_the_task_and_repeat_with_the_seed(texts):
    words = " ".join(prompt for prompt, _ in texts["style"][WORDS][1]).lower().split()
    assert len(set(words)) > 100
    assert not {"herald", "clerk", "hark", "say", "so"} & set(words)
    lm = load_language_model(SOURCE)
    twins = task_named("style").twins("train", 60, 0)
    again, other = (texts_for_maps("style", twins, lm, (8,), seed)[WORDS][1] for seed in (0, 1))
    assert again == texts["style"][WORDS][1] != other


def test_unlabelled_prompts_have_no_answers_and_both_kinds_in_turn():
    twins = task_named("style").twins("train", 8, 0)
    prompts = unlabelled_prompts(twins, 4)
    assert [answer for _, answer in prompts] == [None] * 4
    assert [prompt.startswith("Speak like a herald") for prompt, _ in prompts] == [False, True] * 2
