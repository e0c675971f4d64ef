"""A chosen strength is confirmed on more benign prompts than chose it."""

import pytest
from tests.fakes import tiny_model
from tests.workflows.small import brief_config
from tests.workflows.told import Told, WideBench

from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.confirming import confirmed, confirmed_unscored
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.selection import Scored, make_selector
from isthmus.workflows.twins import read_splits

N_CHOOSING, N_CONFIRMING = 8, 100
STRENGTHS = (0.5, 1.0, 2.5)
ARM = Arm("native", Site(1), "last:1", "add", 2.5)
HARMLESS = (0.01, 0)


@pytest.fixture(scope="module")
def benches() -> tuple[Bench, WideBench]:
    lm = tiny_model(max_position_embeddings=512)
    config = brief_config("one", "two", strengths=STRENGTHS, n_benign=N_CONFIRMING, n_validation=8)
    splits = read_splits(config)
    return Bench(lm, splits.validation, config), WideBench(lm, splits.confirming, config)


def confirm(
    benches: tuple[Bench, WideBench],
    effects: dict[float, float],
    wide: dict[float, tuple[float, int]],
    found: Scored | None = None,
) -> Scored:
    bench, many = benches
    recorder = Recorder(bench.config, "source", "target", "test", 100)
    told = Told(**vars(make_selector(bench, recorder, SilentProgress())))
    told.tell({}, {1: {s: (effect, 0.0, 0.0) for s, effect in effects.items()}})
    many.tell(wide)
    return confirmed(told, many, found or Scored(ARM, 0.9, 0.0))


def test_the_confirming_questions_begin_with_those_that_choose(benches: tuple[Bench, WideBench]):
    few, many = benches
    assert len(few.twins) == N_CHOOSING
    assert len(many.twins) == N_CONFIRMING
    assert many.twins[:N_CHOOSING] == few.twins


@pytest.mark.parametrize("task", ["backdoor", "code", "refusal", "style"])
def test_who_chooses_does_not_depend_on_who_confirms(task: str):
    without, with_more = (
        read_splits(brief_config("one", "two", task=task, n_benign=n)) for n in (0, N_CONFIRMING)
    )
    assert not without.confirming
    assert len(with_more.confirming) > len(with_more.validation)
    assert with_more.validation == without.validation
    assert with_more.test == without.test


@pytest.mark.parametrize("lost", [0, 1])
def test_a_strength_that_does_no_harm_on_more_prompts_is_kept(benches, lost: int):
    found = Scored(ARM, 0.9, 0.0)
    assert confirm(benches, {}, {2.5: (0.02, lost)}, found) is found


def test_one_lost_answer_is_no_harm_however_few_are_asked(benches):
    few, many = benches
    wide = WideBench(many.lm, many.twins[:20], many.config)
    found = Scored(ARM, 0.9, 0.0)
    assert confirm((few, wide), {}, {2.5: (0.02, 1)}, found) is found
    gentler = confirm((few, wide), {2.0: 0.8}, {2.5: (0.02, 2), 2.0: (0.02, 1)}, found)
    assert gentler.arm.strength == 2.0


@pytest.mark.parametrize("harm", [(0.01, 2), (0.06, 0)], ids=["answers lost", "divergence"])
def test_one_that_does_harm_there_gives_way_to_the_largest_gentler_one_that_does_not(
    benches, harm: tuple[float, int]
):
    wide = {2.5: harm, 2.0: harm, 1.5: HARMLESS, 1.0: HARMLESS}
    kept = confirm(benches, {1.5: 0.8, 1.0: 0.9}, wide)
    assert (kept.arm.strength, kept.effect) == (1.5, 0.8)


def test_where_no_strength_is_harmless_the_chosen_one_stays_and_its_harm_is_known(benches):
    harm = (0.01, 5)
    kept = confirm(benches, {}, dict.fromkeys((2.5, 2.0, 1.5, 1.0, 0.8333, 0.6667, 0.5), harm))
    assert kept.arm == ARM
    assert kept.accuracy_loss == pytest.approx(0.05)


def test_where_divergence_alone_can_be_kept_the_largest_that_keeps_it_is_taken(benches):
    wide = dict.fromkeys((2.5, 2.0), (0.06, 5)) | dict.fromkeys(
        (1.5, 1.0, 0.8333, 0.6667, 0.5), (0.04, 5)
    )
    kept = confirm(benches, {1.5: 0.8}, wide)
    assert (kept.arm.strength, kept.effect) == (1.5, 0.8)
    assert (kept.damage, kept.accuracy_loss) == pytest.approx((0.04, 0.05))


def test_where_nothing_keeps_a_budget_the_least_damaging_is_taken(benches):
    sizes = (2.5, 2.0, 1.5, 1.0, 0.8333, 0.6667, 0.5)
    kept = confirm(benches, {0.5: 0.1}, {s: (0.06 + s / 100, 5) for s in sizes})
    assert (kept.arm.strength, kept.effect) == (0.5, 0.1)


def test_what_did_harm_already_is_not_asked_again(benches):
    found = Scored(ARM, 0.9, 0.06)
    assert confirm(benches, {}, {}, found) is found
    assert not benches[1].asked


def test_without_more_questions_nothing_is_confirmed(benches):
    few, many = benches
    same = WideBench(many.lm, few.twins, few.config)
    found = Scored(ARM, 0.9, 0.0)
    assert confirm((few, same), {}, {}, found) is found
    assert not same.asked


@pytest.mark.parametrize(
    ("wide", "strength", "damage"),
    [
        ({2.5: (0.02, 1)}, 2.5, 0.02),
        ({2.5: (0.06, 0), 2.0: (0.04, 2), 1.5: (0.03, 1)}, 1.5, 0.03),
        # Nothing is harmless: the largest within the budget of divergence, else the least damaging.
        ({2.5: (0.06, 2), 2.0: (0.04, 2)}, 2.0, 0.04),
        ({2.5: (0.9, 2), 0.5: (0.1, 2)}, 0.5, 0.1),
    ],
    ids=["harmless", "gentler", "answers lost by all", "divergence of all"],
)
def test_a_strength_found_without_labels_is_confirmed_without_them(
    benches, wide: dict[float, tuple[float, int]], strength: float, damage: float
):
    _, many = benches
    others = dict.fromkeys((2.5, 2.0, 1.5, 1.0, 0.8333, 0.6667, 0.5), max(wide.values()))
    many.tell(others | wide)
    # Half of the questions may have lost one answer of few, which forbids nothing.
    found = Scored(ARM, 0.9, 0.0, 1 / 24)
    kept = confirmed_unscored(many.config, STRENGTHS, many, found)
    assert (kept.arm.strength, kept.effect) == (strength, 0.9)
    assert kept.damage == pytest.approx(damage)
    assert many.asked[0] == 2.5
