"""Independence: where activations of two models have nothing to do with each other, no map predicts
one from the other, and no direction that it carries does anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from tests.workflows.small import small_config

from isthmus.carrying.directions import carry_direction
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.files import FittedMap
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import MapMethod
from isthmus.workflows.map_fitting import Besides, MapEnds, fit_map
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import PairedRows, Part, paired_rows
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import TwinSplits, map_texts, read_splits

CONFIG = small_config(n_train=32, n_test=16)
POSITIONS = "last:3"
# Left out: what trains for minutes, what tries the others, and what is not fitted on these pairs.
LEFT_OUT = {"autoencoder_well_trained", "autoencoder_residual", "auto", "unembedding_rows"}
METHODS = [m for m in get_args(MapMethod) if m not in LEFT_OUT]
LEARNED = [m for m in METHODS if m != "identity"]

Rows = Mapping[Part, PairedRows]


@dataclass(frozen=True)
class Pair:
    """Two organisms that show the same behaviour, and the questions they were read on."""

    source: LanguageModel
    target: LanguageModel
    splits: TwinSplits
    direction: Direction
    bench: Bench

    def ends(self, site: Site) -> MapEnds:
        return MapEnds(self.source.identity, self.target.identity, self.direction.sites, site)

    def rows(self, site: Site) -> dict[Part, PairedRows]:
        texts = map_texts(self.splits.train)
        asked, answers = [p for p, _ in texts], [a for _, a in texts]
        sides = [encode_prompts(lm.tokenizer, asked, answers=answers) for lm in self.models]
        sites = (self.direction.sites, site)
        return paired_rows(*self.models, (sides[0], sides[1]), sites, progress=SilentProgress())

    @property
    def models(self) -> tuple[LanguageModel, LanguageModel]:
        return self.source, self.target

    def effects(self, fitted: FittedMap) -> dict[str, Measurement]:
        """What the carried direction does at its own length: no norm is matched."""
        carried = carry_direction(self.direction, fitted)
        site = fitted.target_site
        arm = Arm("transferred", site, POSITIONS, "add", 1.0, carried, map_method="any")
        recorder = Recorder(CONFIG, "source", "target", "test", 400)
        return {m.metric: m for m in recorder.effects(arm, self.bench.score(arm))}


@pytest.fixture(scope="module")
def pair() -> Pair:
    source = load_language_model(CONFIG.source)
    target = load_language_model(CONFIG.targets[0])
    splits = read_splits(CONFIG)
    direction = learn_twin_direction(source, splits.train, source.sites("all"), POSITIONS, CONFIG)
    return Pair(source, target, splits, direction, Bench(target, splits.test, CONFIG))


@pytest.fixture(scope="module")
def true_rows(pair: Pair) -> dict[Site, dict[Part, PairedRows]]:
    return {site: pair.rows(site) for site in pair.target.sites("all")[:-1]}


@pytest.fixture(scope="module")
def best_site(pair: Pair, true_rows: dict[Site, dict[Part, PairedRows]]) -> Site:
    """Where the ridge map of the true pairs carries the direction best."""

    def recovered(site: Site) -> float:
        effects = pair.effects(fit("ridge", true_rows[site], pair.ends(site)))
        return effects["swap"].value or 0.0

    return max(true_rows, key=recovered)


def fit(method: MapMethod, rows: Rows, ends: MapEnds) -> FittedMap:
    besides = Besides(contrasts=lambda: differences_of(rows))
    return fit_map(method, rows, ends, 0, SilentProgress(), besides)


def differences_of(rows: Rows) -> dict[Part, PairedRows]:
    """What consecutive pairs differ in, for the map that is fitted on differences, too."""
    return {
        part: PairedRows(r.source[1:] - r.source[:-1], r.target[1:] - r.target[:-1])
        for part, r in rows.items()
    }


def torn_apart(rows: Rows, seed: int) -> dict[Part, PairedRows]:
    """The same activations with the pairing destroyed, for fitting and for measuring."""
    generator = torch.Generator().manual_seed(seed)
    return {
        part: PairedRows(r.source, shuffled_rows(r.target, generator)) for part, r in rows.items()
    }


def gaussian_rows(d_source: int, d_target: int, seed: int) -> dict[Part, PairedRows]:
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[Part, int] = {"train": 1500, "selection": 300, "held_out": 600}
    return {
        part: PairedRows(
            torch.randn(n, d_source, generator=generator),
            2 + 3 * torch.randn(n, d_target, generator=generator),
        )
        for part, n in sizes.items()
    }


def test_the_true_pairing_carries_a_direction_that_works(
    pair: Pair, true_rows: dict[Site, dict[Part, PairedRows]], best_site: Site
):
    fitted = fit("ridge", true_rows[best_site], pair.ends(best_site))
    effects = pair.effects(fitted)
    assert fitted.quality.r2_held_out > 0.7
    assert effects["swap"].value is not None
    assert effects["swap"].value > 0.5
    assert effects["swap"].ci_low is not None
    assert effects["swap"].ci_low > 0.3


@pytest.mark.parametrize("method", METHODS)
def test_no_map_predicts_activations_that_were_paired_at_random(
    pair: Pair,
    true_rows: dict[Site, dict[Part, PairedRows]],
    best_site: Site,
    method: MapMethod,
):
    fitted = fit(method, torn_apart(true_rows[best_site], 0), pair.ends(best_site))
    assert fitted.quality.r2_held_out <= 0
    assert fitted.quality.fvu_held_out >= 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["ridge", "reduced_rank", "procrustes"])
def test_no_map_predicts_independent_gaussian_activations(pair: Pair, method: MapMethod, seed: int):
    site = pair.target.site(1)
    ends = pair.ends(site)
    rows = gaussian_rows(len(ends.source_sites) * pair.source.d_model, pair.target.d_model, seed)
    assert fit(method, rows, ends).quality.r2_held_out <= 0


@pytest.mark.parametrize("method", LEARNED)
def test_a_direction_carried_by_a_map_of_random_pairs_recovers_nothing(
    pair: Pair,
    true_rows: dict[Site, dict[Part, PairedRows]],
    best_site: Site,
    method: MapMethod,
):
    effects = pair.effects(fit(method, torn_apart(true_rows[best_site], 1), pair.ends(best_site)))
    for metric in ("recovery", "swap"):
        found = effects[metric]
        assert found.value is not None
        assert found.ci_low is not None
        assert found.ci_high is not None
        includes_zero = found.ci_low <= 0 <= found.ci_high
        assert includes_zero or abs(found.value) < 0.05


@pytest.mark.parametrize("is_true", [True, False])
def test_held_out_r2_is_that_of_scikit_learn_for_true_and_for_random_pairs(
    pair: Pair,
    true_rows: dict[Site, dict[Part, PairedRows]],
    best_site: Site,
    is_true: bool,  # noqa: FBT001
):
    rows = true_rows[best_site] if is_true else torn_apart(true_rows[best_site], 2)
    fitted = fit("ridge", rows, pair.ends(best_site))
    held_out = rows["held_out"]
    predicted = fitted.map(held_out.source).double().numpy()
    target = held_out.target.double().numpy()
    # scikit-learn's R2 over flattened centred targets pools all coordinates as ours does.
    centre = target.mean(0)
    expected = r2_score(np.ravel(target - centre), np.ravel(predicted - centre))
    assert fitted.quality.r2_held_out == pytest.approx(expected, abs=1e-4)
