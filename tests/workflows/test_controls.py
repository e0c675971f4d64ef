from dataclasses import replace

import pytest
import torch
from tests.fakes import tiny_model
from tests.workflows.small import brief_config

from isthmus.carrying.directions import carry_direction
from isthmus.carrying.scaling import cosine
from isthmus.core.errors import ConfigError
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction, SiteDirection
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.arms import Arm
from isthmus.workflows.config import EditKind
from isthmus.workflows.controls import control_arms
from isthmus.workflows.map_fitting import MapEnds, fit_map
from isthmus.workflows.pairing import PairedRows, Part, part_of_text

CONFIG = brief_config("one", "two", n_random=3)
TARGET_SITE = Site(1)


@pytest.fixture(scope="module")
def source() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def target() -> LanguageModel:
    return tiny_model("gpt2", hidden_size=24, seed=1)


@pytest.fixture(scope="module")
def ends(source: LanguageModel, target: LanguageModel) -> MapEnds:
    return MapEnds(source.identity, target.identity, (Site(0), Site(1)), TARGET_SITE)


@pytest.fixture(scope="module")
def rows() -> dict[Part, PairedRows]:
    """Pairs that a linear map explains nearly."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 24, generator=generator)
    sizes: dict[Part, int] = {"train": 400, "selection": 80, "held_out": 80}
    made: dict[Part, PairedRows] = {}
    for part, n in sizes.items():
        x = torch.randn(n, 32, generator=generator)
        made[part] = PairedRows(x, x @ weight + 0.1 * torch.randn(n, 24, generator=generator))
    return made


@pytest.fixture(scope="module")
def direction(source: LanguageModel) -> Direction:
    generator = torch.Generator().manual_seed(1)
    by_site = {}
    for site in (Site(0), Site(1)):
        states = torch.randn(4, 3, 16, generator=generator)
        vectors = torch.randn(3, 16, generator=generator)
        by_site[site] = SiteDirection(
            vectors=vectors,
            positive_mean=vectors,
            negative_mean=0 * vectors,
            positive_states=states + vectors,
            negative_states=states,
        )
    return Direction(by_site, source.identity, "mean_difference", "last:3", pooled=False)


@pytest.fixture(scope="module")
def transferred(direction: Direction, ends: MapEnds, rows: dict[Part, PairedRows]) -> Arm:
    fitted = fit_map("ridge", rows, ends, 0, SilentProgress())
    carried = carry_direction(direction, fitted)
    return Arm("transferred", TARGET_SITE, "last:3", "add", 1.5, carried, map_method="ridge")


@pytest.fixture(scope="module")
def controls(
    transferred: Arm, direction: Direction, ends: MapEnds, rows: dict[Part, PairedRows]
) -> list[Arm]:
    return control_arms(transferred, direction, rows, ends, CONFIG)


def test_every_control_of_the_contract_is_there_and_random_as_often_as_asked(controls: list[Arm]):
    assert [arm.condition for arm in controls] == [
        *["random"] * 3,
        "noise",
        "shuffled_map",
        "identity_map",
        "mean_ablation",
        "prompt_only",
    ]
    assert len({arm.seed for arm in controls if arm.condition == "random"}) == 3


def test_controls_act_at_the_same_place_and_strength_with_vectors_as_long(
    controls: list[Arm], transferred: Arm
):
    assert transferred.direction is not None
    norms = transferred.direction.norms[TARGET_SITE]
    for arm in controls:
        if arm.condition in {"random", "noise", "shuffled_map", "identity_map"}:
            assert arm.direction is not None
            assert (arm.site, arm.positions, arm.strength) == (TARGET_SITE, "last:3", 1.5)
            torch.testing.assert_close(arm.direction.norms[TARGET_SITE], norms)


def test_controls_point_elsewhere_than_what_was_carried(controls: list[Arm], transferred: Arm):
    assert transferred.direction is not None
    carried = transferred.direction.at(TARGET_SITE).vectors
    for arm in controls:
        if arm.condition in {"random", "shuffled_map", "identity_map"}:
            assert arm.direction is not None
            assert float(cosine(carried, arm.direction.at(TARGET_SITE).vectors).max()) < 0.9


def test_the_identity_control_copies_the_nearest_layer_coordinate_by_coordinate(
    controls: list[Arm], direction: Direction
):
    (arm,) = [arm for arm in controls if arm.condition == "identity_map"]
    assert arm.direction is not None
    made = arm.direction.at(TARGET_SITE).unit_vectors
    # Width 16 into width 24: the rest is zero.
    torch.testing.assert_close(made[:, :16], direction.at(Site(1)).unit_vectors)
    assert not made[:, 16:].any()


def test_mean_ablation_puts_the_mean_state_of_the_training_pairs(
    controls: list[Arm], rows: dict[Part, PairedRows]
):
    (arm,) = [arm for arm in controls if arm.condition == "mean_ablation"]
    torch.testing.assert_close(arm.mean[TARGET_SITE][0], rows["train"].target.mean(0))


def test_the_same_seed_draws_the_same_controls_and_another_one_others(
    transferred: Arm,
    direction: Direction,
    ends: MapEnds,
    rows: dict[Part, PairedRows],
    controls: list[Arm],
):
    def vectors(arms: list[Arm], condition: str) -> torch.Tensor:
        made = next(arm.direction for arm in arms if arm.condition == condition)
        assert made is not None
        return made.at(TARGET_SITE).vectors

    again = control_arms(transferred, direction, rows, ends, CONFIG)
    other = control_arms(transferred, direction, rows, ends, CONFIG.model_copy(update={"seed": 77}))
    for condition in ("random", "shuffled_map"):
        assert torch.equal(vectors(controls, condition), vectors(again, condition))
        assert not torch.equal(vectors(controls, condition), vectors(other, condition))


def test_a_direction_that_the_identity_map_cuts_off_leaves_that_control_out(
    target: LanguageModel, source: LanguageModel, rows: dict[Part, PairedRows]
):
    """From width 24 to 16, where the direction lives in the coordinates that are lost."""
    vectors = torch.zeros(1, 24)
    vectors[0, 20] = 3.0
    states = torch.zeros(2, 1, 24)
    one = SiteDirection(
        vectors=vectors,
        positive_mean=vectors,
        negative_mean=0 * vectors,
        positive_states=states + vectors,
        negative_states=states,
    )
    wide = Direction({Site(1): one}, target.identity, "mean_difference", "last:1", pooled=False)
    ends = MapEnds(target.identity, source.identity, (Site(1),), Site(1))
    turned = {part: PairedRows(r.target, r.source[:, :16]) for part, r in rows.items()}
    carried = carry_direction(wide, fit_map("ridge", turned, ends, 0, SilentProgress()))
    arm = Arm("transferred", Site(1), "last:1", "add", 1.0, carried)
    found = [one.condition for one in control_arms(arm, wide, turned, ends, CONFIG)]
    assert "identity_map" not in found
    assert "shuffled_map" in found


@pytest.mark.parametrize(
    ("edit", "expected"),
    [("add", "add"), ("ablate", "ablate"), ("replace", "add"), ("set_coordinate", "add")],
)
def test_controls_edit_as_the_transferred_arm_does_where_noise_can(
    transferred: Arm,
    direction: Direction,
    ends: MapEnds,
    rows: dict[Part, PairedRows],
    edit: EditKind,
    expected: EditKind,
):
    arms = control_arms(replace(transferred, edit=edit), direction, rows, ends, CONFIG)
    assert {arm.edit for arm in arms if arm.condition == "random"} == {expected}
    assert {arm.edit for arm in arms if arm.condition == "noise"} == {"add"}


def test_an_arm_without_a_direction_has_no_controls(
    direction: Direction, ends: MapEnds, rows: dict[Part, PairedRows]
):
    with pytest.raises(ConfigError, match="controls need a transferred direction"):
        control_arms(Arm("transferred"), direction, rows, ends, CONFIG)


def test_of_every_ten_texts_seven_train_one_selects_and_two_are_held_out():
    parts = [part_of_text(i) for i in range(200)]
    assert {part: parts.count(part) for part in parts} == {
        "train": 140,
        "selection": 20,
        "held_out": 40,
    }
    # Every question gives three texts in a row, so each third of them must reach every part.
    for third in range(3):
        assert set(parts[third::3]) == {"train", "selection", "held_out"}
