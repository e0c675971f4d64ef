import pytest
import torch
from tests.fakes import tiny_model

from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.core.texts import pad_batch
from isthmus.models.batching import no_edits
from isthmus.models.encoding import encode_prompts
from isthmus.models.scoring import answer_nll
from isthmus.studies.prompt_ending import learn_ending, with_vectors
from isthmus.workflows.switch_training import TrainingSettings

SITE = Site(1)
PROMPTS = ["What is the colour of the fox?", "Name the rope.", "Where is the lake of the barn?"]


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", n_layers=3)


@pytest.fixture(scope="module")
def taught(lm):
    return encode_prompts(lm.tokenizer, PROMPTS, answers=["red.", "red.", "red."])


def test_learned_vectors_make_the_teachers_answers_likelier_and_leave_the_weights_alone(lm, taught):
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    start = (SITE, torch.zeros(3, lm.d_model))
    settings = TrainingSettings(20, 3, 0.1, n_warmup=2)
    vectors = learn_ending(lm, taught, no_edits, start, settings, SilentProgress())
    edited = answer_nll(lm, taught, edits=with_vectors(no_edits, SITE, vectors)).nll
    assert (answer_nll(lm, taught).nll - edited > 0.1).all()
    for name, p in lm.model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None


def test_vectors_act_at_the_prompts_last_tokens_after_the_edit_below_them(lm, taught):
    place = with_vectors(no_edits, SITE, torch.ones(2, lm.d_model))
    batch = pad_batch(taught, lm.pad_id, "right")
    marked = torch.stack([one.given for one in place(batch)]).any(0)
    for row, text in enumerate(batch.texts):
        assert marked[row].nonzero()[:, 0].tolist() == [text.n_prompt - 2, text.n_prompt - 1]
