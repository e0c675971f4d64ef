from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from tests.unit.directions.states import a_direction, a_subspace, identity_of, two_classes

from isthmus.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    FitError,
    NonFiniteError,
    OutputError,
    ShapeError,
)
from isthmus.core.sites import Site
from isthmus.directions import (
    SiteSubspace,
    Subspace,
    learn_site_direction,
    learn_site_subspace,
    load_direction,
    load_direction_or_subspace,
    load_subspace,
    save_direction,
    subspace_of,
)

SITES = (Site(3), Site(0))


def planted(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Twins that differ by a constant along one axis and by turns along two others of eight."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(8, 3, generator=generator)).Q.mT
    turns = torch.tensor([[3.0, 2.0, -1.0], [3.0, -2.0, 1.0], [3.0, 2.0, 1.0], [3.0, -2.0, -1.0]])
    common = torch.randn(n, 1, 8, generator=generator)
    return common + (turns.repeat(n // 4, 1) @ axes)[:, None], common, axes


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_a_basis_is_orthonormal_and_rank_one_is_the_span_of_the_mean_difference(seed, rank):
    positive, negative, _ = two_classes(n=12, seed=seed)
    learned = learn_site_subspace(positive, negative, rank, pooled=True)
    torch.testing.assert_close(learned.basis @ learned.basis.mT, torch.eye(rank), atol=1e-5, rtol=0)
    direction = learn_site_direction("mean_difference", positive, negative, pooled=True)
    torch.testing.assert_close(learned.basis[:1], direction.unit_vectors)
    torch.testing.assert_close(learned.norms, direction.norms)
    torch.testing.assert_close(learned.vectors, direction.vectors, atol=1e-4, rtol=1e-4)


def test_a_planted_subspace_is_found_and_its_shares_are_the_energies_that_were_planted():
    positive, negative, axes = planted()
    learned = learn_site_subspace(positive, negative, 3, pooled=True)
    torch.testing.assert_close((learned.basis @ axes.mT).abs(), torch.eye(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(learned.shares.float(), torch.tensor([9.0, 4.0, 1.0]) / 14)


def test_the_rest_is_what_scikit_learn_finds_in_pooled_differences_beside_their_mean():
    positive, negative, _ = two_classes(n=30, d_model=7)
    learned = learn_site_subspace(positive, negative, 4, pooled=True)
    differences = (positive - negative).double().flatten(0, 1).numpy()
    first = learned.basis[0].double().numpy()
    rest = differences - np.outer(differences @ first, first)
    found = PCA(3).fit(rest).components_
    cosines = np.abs((found * learned.basis[1:].double().numpy()).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_a_higher_rank_holds_every_lower_one():
    positive, negative, _ = two_classes(n=12)
    ranks = [learn_site_subspace(positive, negative, rank, pooled=False) for rank in (1, 2, 4)]
    for lower, higher in pairwise(ranks):
        assert torch.equal(higher.basis[: lower.rank], lower.basis)
    shares = [float(one.shares.sum()) for one in ranks]
    assert shares == sorted(shares)
    assert shares[-1] <= 1


def test_the_basis_is_one_for_all_positions_and_the_classes_lie_where_each_position_has_them():
    positive, negative, _ = two_classes(n=12, n_positions=3)
    by_position = learn_site_subspace(positive, negative, 2, pooled=False)
    pooled = learn_site_subspace(positive, negative, 2, pooled=True)
    assert torch.equal(by_position.basis, pooled.basis)
    assert by_position.positive_coordinates.shape == (3, 2)
    torch.testing.assert_close(
        by_position.negative_coordinates, negative.mean(0) @ by_position.basis.mT
    )
    torch.testing.assert_close(
        by_position.positive_coordinates.mean(0, keepdim=True), pooled.positive_coordinates
    )


def test_a_direction_of_pairs_gives_the_subspace_of_its_states_by_any_method():
    for method in ("mean_difference", "pca", "probe"):
        direction = a_direction(*SITES, method=method)
        found = subspace_of(direction, 3)
        expected = a_subspace(*SITES, rank=3)
        for site in SITES:
            for name, value in expected.at(site).tensors.items():
                torch.testing.assert_close(
                    found.at(site).tensors[name].abs(), value.abs(), atol=1e-4, rtol=1e-4
                )
        assert (found.positions, found.pooled) == (direction.positions, direction.pooled)
        assert found.certificate is None


def test_ranks_that_cannot_be_are_refused_with_the_rank_that_can():
    positive, negative, _ = planted()
    with pytest.raises(ConfigError, match="rank of at least 1"):
        learn_site_subspace(positive, negative, 0, pooled=True)
    with pytest.raises(FitError, match="span 3 dimensions: ask for rank 3 at most"):
        learn_site_subspace(positive, negative, 4, pooled=True)
    with pytest.raises(FitError, match="do not differ on average"):
        learn_site_subspace(negative, negative, 1, pooled=True)
    both = torch.cat([positive, negative]), torch.cat([negative, positive])
    with pytest.raises(FitError, match="do not differ on average"):
        learn_site_subspace(*both, 1, pooled=True)


def test_states_without_twins_are_refused():
    positive, negative, _ = planted()
    with pytest.raises(DataError, match="needs pairs, got 40 positive and 39 negative"):
        learn_site_subspace(positive, negative[1:], 1, pooled=True)
    one = a_subspace(Site(0)).at(Site(0))
    with pytest.raises(DataError, match="needs pairs"):
        replace(one, negative_states=one.negative_states[1:])


def test_a_basis_that_is_none_is_refused():
    one = a_subspace(Site(0), rank=2).at(Site(0))
    with pytest.raises(ShapeError, match="not orthonormal"):
        replace(one, basis=2 * one.basis)
    with pytest.raises(ShapeError, match="not orthonormal"):
        replace(one, basis=one.basis[[0, 0]])
    with pytest.raises(NonFiniteError):
        replace(one, basis=one.basis * torch.nan)
    with pytest.raises(ShapeError, match=r"\[rank d_model\]"):
        replace(one, basis=one.basis[:0])


def test_sites_of_different_ranks_are_refused():
    sites = {site: a_subspace(site, rank=2 + i).at(site) for i, site in enumerate(SITES)}
    with pytest.raises(ShapeError, match="sites differ in rank"):
        Subspace(sites, identity_of("small", 5), "mean_difference_and_pca", "last:2", pooled=False)


def test_a_loaded_subspace_is_the_saved_subspace(tmp_path):
    saved = a_subspace(*SITES, rank=3)
    save_direction(tmp_path / "s", saved)
    for loaded in (load_subspace(tmp_path / "s"), load_direction_or_subspace(tmp_path / "s")):
        assert isinstance(loaded, Subspace)
        assert (loaded.sites, loaded.model, loaded.rank) == (SITES, saved.model, 3)
        assert loaded.provenance == saved.provenance
        for site in SITES:
            assert isinstance(loaded.at(site), SiteSubspace)
            for name, value in saved.at(site).tensors.items():
                assert torch.equal(loaded.at(site).tensors[name], value)


def test_directions_and_subspaces_do_not_take_each_others_place(tmp_path):
    save_direction(tmp_path / "s", a_subspace(Site(0)))
    save_direction(tmp_path / "d", a_direction(Site(0)))
    with pytest.raises(ArtifactError, match="is of kind subspace, expected direction"):
        load_direction(tmp_path / "s")
    with pytest.raises(ArtifactError, match="is of kind direction, expected subspace"):
        load_subspace(tmp_path / "d")
    with pytest.raises(OutputError, match="not an isthmus subspace"):
        save_direction(tmp_path / "d", a_subspace(Site(0)))
