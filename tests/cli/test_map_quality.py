"""What `learn-map` says of a map."""

import pytest
from tests.unit.maps.pairs import identity_of

from isthmus.cli.artifacts import _print_quality
from isthmus.core.sites import Site
from isthmus.maps import FittedMap, MapQuality, identity_map


def test_both_scores_are_shown_and_what_auto_could_not_fit(capsys: pytest.CaptureFixture[str]):
    ends = identity_of("one", 4), identity_of("two", 4)
    quality = MapQuality(0.9999, 0.0001, 100, 20, r2_median_coordinate=-0.25)
    told = {"not_fitted": {"kernel_ridge": "it needs at least 2 pairs"}}
    _print_quality(FittedMap(identity_map(4, 4), *ends, (Site(0),), Site(1), quality, told))
    shown = " ".join(capsys.readouterr().out.split())
    assert "held-out R2 0.9999, of the median coordinate -0.2500 (n = 20 pairs" in shown
    assert "kernel_ridge: not fitted, it needs at least 2 pairs" in shown
