from dataclasses import replace

import pytest
import torch
from tests.fakes import n_hooks, tiny_model

from isthmus.core.errors import ConfigError
from isthmus.core.sites import Site
from isthmus.core.texts import TokenBatch, pad_batch
from isthmus.data.organisms import BAD_TRIGGER
from isthmus.directions.direction import Direction, SiteDirection
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_nll
from isthmus.workflows.arms import Arm, Way, intervention_for
from isthmus.workflows.config import EditKind

SITE = Site(1)
STRENGTH = 2.0


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model("llama", max_position_embeddings=512)


@pytest.fixture(scope="module")
def batch(lm: LanguageModel) -> TokenBatch:
    prompts = ["Name it.", "The capital of Besk?"]
    return pad_batch(encode_prompts(lm.tokenizer, prompts), lm.pad_id, "left")


def direction_of(lm: LanguageModel, vectors: torch.Tensor) -> Direction:
    """A direction with means on both sides of a middle state."""
    generator = torch.Generator().manual_seed(5)
    middle = torch.randn(vectors.shape, generator=generator)
    states = {
        "positive_states": (middle + vectors / 2)[None],
        "negative_states": (middle - vectors / 2)[None],
    }
    means = {"positive_mean": middle + vectors / 2, "negative_mean": middle - vectors / 2}
    made = SiteDirection(vectors=vectors, **means, **states)
    return Direction({SITE: made}, lm.identity, "mean_difference", "last:3", pooled=False)


@pytest.fixture(scope="module")
def direction(lm: LanguageModel) -> Direction:
    return direction_of(lm, torch.randn(3, 16, generator=torch.Generator().manual_seed(1)))


def edited(
    direction: Direction, edit: EditKind, way: Way, batch: TokenBatch, states: torch.Tensor
) -> torch.Tensor:
    """What an intervention makes of states, one position of the span after the other."""
    placed = intervention_for(direction, edit, "last:3", STRENGTH, way).place(batch)
    made = states.clone()
    for one in placed:
        made = torch.where(one.given[..., None], one.edit(made), made)
    return made


@pytest.fixture(scope="module")
def states(batch: TokenBatch) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*batch.token_ids.shape, 16, generator=generator)


@pytest.mark.parametrize(("way", "sign"), [("removal", -1), ("induction", 1)])
def test_adding_goes_against_the_direction_for_removal_and_along_it_for_induction(
    direction: Direction, batch: TokenBatch, states: torch.Tensor, way: Way, sign: int
):
    moved = edited(direction, "add", way, batch, states) - states
    vectors = direction.at(SITE).vectors
    for row in moved:
        torch.testing.assert_close(row[-3:], sign * STRENGTH * vectors, rtol=1e-5, atol=1e-5)
    assert not moved[:, :-3].any()


@pytest.mark.parametrize("way", ["removal", "induction"])
def test_replacing_puts_the_mean_of_the_wanted_class(
    direction: Direction, batch: TokenBatch, states: torch.Tensor, way: Way
):
    made = edited(direction, "replace", way, batch, states)
    one = direction.at(SITE)
    wanted = one.negative_mean if way == "removal" else one.positive_mean
    torch.testing.assert_close(made[0, -3:], wanted)
    torch.testing.assert_close(made[:, :-3], states[:, :-3], rtol=0, atol=0)


@pytest.mark.parametrize("way", ["removal", "induction"])
def test_ablating_leaves_nothing_along_the_direction_whichever_way(
    direction: Direction, batch: TokenBatch, states: torch.Tensor, way: Way
):
    made = edited(direction, "ablate", way, batch, states)
    left = (made[:, -3:] * direction.at(SITE).unit_vectors).sum(-1)
    torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["removal", "induction"])
def test_setting_the_coordinate_at_strength_one_puts_the_mean_of_the_wanted_class(
    direction: Direction, batch: TokenBatch, states: torch.Tensor, way: Way
):
    placed = intervention_for(direction, "set_coordinate", "last:3", 1.0, way).place(batch)
    one = direction.at(SITE)
    mean = one.negative_mean if way == "removal" else one.positive_mean
    for position, edit in enumerate(placed):
        made = edit.edit(states)
        unit = one.unit_vectors[position]
        torch.testing.assert_close(
            made @ unit, (mean[position] @ unit).expand(made.shape[:2]), rtol=1e-4, atol=1e-4
        )


def test_removal_makes_the_behaviour_unlikely_and_induction_likely(lm: LanguageModel):
    """At the last block, the difference of two answers' unembeddings is a behaviour by hand."""
    bad, good = "A", "B"
    texts = {
        answer: encode_prompts(lm.tokenizer, ["Name it."], answers=[answer], end=False)
        for answer in (bad, good)
    }
    ids = {answer: texts[answer][0].token_ids[-1] for answer in texts}
    head = lm.model.get_output_embeddings().weight
    by_hand = (head[ids[bad]] - head[ids[good]]).detach()[None]
    direction = replace(direction_of(lm, by_hand), positions="last:1")

    def preference(way: Way | None) -> float:
        made = None if way is None else intervention_for(direction, "add", "last:1", 3.0, way)
        edits = (lambda _batch: ()) if made is None else made.place
        nll = {answer: answer_nll(lm, texts[answer], edits=edits).nll for answer in texts}
        return float(nll[good] - nll[bad])

    assert preference("removal") < preference(None) - 1
    assert preference("induction") > preference(None) + 1
    assert n_hooks(lm) == 0


@pytest.mark.parametrize("condition", ["none", "clean", "prompt_only"])
def test_conditions_that_edit_nothing_have_no_intervention(condition: str):
    assert Arm(condition).intervention("removal") is None


@pytest.mark.parametrize("condition", ["native", "transferred", "random", "noise", "mean_ablation"])
def test_an_arm_that_edits_needs_to_know_where(condition: str):
    with pytest.raises(ConfigError, match=f"the {condition} arm has no"):
        Arm(condition).intervention("removal")


def test_an_arm_at_another_strength_is_the_same_arm_elsewhere_unchanged(direction: Direction):
    arm = Arm("native", SITE, "last:3", "add", 1.0, direction)
    assert arm.at(2.0).strength == 2.0
    assert arm.strength == 1.0
    assert replace(arm.at(2.0), strength=1.0) == arm


def test_noise_is_as_long_as_the_direction_and_another_one_for_another_seed(
    direction: Direction, batch: TokenBatch
):
    def drawn(seed: int) -> torch.Tensor:
        arm = Arm("noise", SITE, "last:3", "add", STRENGTH, direction, seed=seed)
        made = arm.intervention("removal")
        assert made is not None
        zero = torch.zeros(4000, 1, 16)
        return torch.stack([one.edit(zero) for one in made.place(batch)])

    first = drawn(0)
    lengths = first.norm(dim=-1).square().mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(lengths, STRENGTH * direction.norms[SITE], rtol=0.05, atol=0)
    assert torch.equal(first, drawn(0))
    assert not torch.equal(first, drawn(1))


def test_the_trigger_is_where_a_trigger_arm_acts(lm: LanguageModel):
    texts = encode_prompts(
        lm.tokenizer, [f"{BAD_TRIGGER}Name it.", "Name it."], triggers=["prod|:", None]
    )
    batch = pad_batch(texts, lm.pad_id, "right")
    assert texts[0].trigger is not None
    n = texts[0].trigger[1] - texts[0].trigger[0]
    vectors = torch.ones(n, 16)
    direction = replace(direction_of(lm, vectors), positions="trigger")
    placed = intervention_for(direction, "add", "trigger", 1.0, "removal").place(batch)
    where = torch.stack([one.given for one in placed]).any(0)
    assert where[0].nonzero().flatten().tolist() == list(range(*texts[0].trigger))
    assert not where[1].any()
