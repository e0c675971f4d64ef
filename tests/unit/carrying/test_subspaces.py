from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.carrying.test_directions import TARGET_SITE, affine_map, fitted_map, relu_map
from tests.unit.directions.states import a_direction, a_subspace, identity_of, two_classes
from tests.unit.maps.pairs import random_weight, seeded

from isthmus.carrying import (
    at_several_sites,
    carry_along,
    carry_direction,
    carry_subspace,
    random_subspace_like,
)
from isthmus.carrying.subspaces import orthonormal_rows
from isthmus.core.errors import ConfigError, FitError, IdentityError, SiteError
from isthmus.core.sites import Site
from isthmus.directions import learn_site_subspace, load_subspace, save_direction
from isthmus.maps import AffineMap, FittedMap, MapQuality

HERE = Site(2)


def projector(basis: torch.Tensor) -> torch.Tensor:
    return basis.double().mT @ basis.double()


def onward() -> FittedMap:
    """A map from where `fitted_map` ends to a third model."""
    weight = random_weight(4, 6).float()
    plain = AffineMap(weight, torch.zeros(4), torch.zeros(6), "ridge")
    models = {"source": identity_of("large", 4), "target": identity_of("third", 6)}
    sites = {"source_sites": (TARGET_SITE,), "target_site": Site(0)}
    return FittedMap(map=plain, **models, **sites, quality=MapQuality(0.9, 0.1, 100, 20))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_orthonormal_rows_span_what_was_given_row_by_row(seed, rank):
    rows = (
        torch.randn(rank, 6, generator=seeded(seed)) * torch.tensor([1.0, 50, 0.1, 3])[:rank, None]
    )
    basis = orthonormal_rows(rows)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(rank, dtype=torch.float64))
    for n in range(1, rank + 1):
        inside = rows[:n].double() @ projector(basis[:n])
        torch.testing.assert_close(inside, rows[:n].double(), atol=1e-6, rtol=1e-6)
    assert ((rows.double() * basis).sum(-1) > 0).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_through_an_affine_map_the_span_arrives_as_its_image(rank):
    subspace, fitted = a_subspace(HERE, rank=rank), fitted_map(affine_map(), HERE)
    carried = carry_subspace(subspace, fitted).at(TARGET_SITE)
    image = subspace.at(HERE).basis.double() @ affine_map().weight.double()
    expected = projector(torch.linalg.svd(image, full_matrices=False).Vh)
    torch.testing.assert_close(projector(carried.basis), expected, atol=1e-6, rtol=1e-5)
    assert carried.rank == rank


def test_coordinates_of_the_classes_are_those_of_the_means_of_the_images():
    subspace = a_subspace(HERE, rank=3)
    for activation_map in (affine_map(), relu_map()):
        carried = carry_subspace(subspace, fitted_map(activation_map, HERE)).at(TARGET_SITE)
        for side in ("positive", "negative"):
            images = activation_map(subspace.at(HERE).tensors[f"{side}_states"])
            assert torch.equal(carried.tensors[f"{side}_states"], images)
            torch.testing.assert_close(
                getattr(carried, f"{side}_coordinates"),
                images.mean(0) @ carried.basis.mT,
                rtol=1e-4,
                atol=1e-4,
            )


@pytest.mark.parametrize("make", [affine_map, relu_map])
@pytest.mark.parametrize("rule", ["auto", "difference"])
def test_rank_one_arrives_where_the_pooled_mean_difference_arrives(make, rule):
    fitted = fitted_map(make(2), Site(0), HERE)
    direction = carry_direction(a_direction(Site(0), HERE, pooled=True), fitted, rule)
    subspace = carry_subspace(a_subspace(Site(0), HERE, rank=1, pooled=True), fitted, rule)
    one, expected = subspace.at(TARGET_SITE), direction.at(TARGET_SITE)
    torch.testing.assert_close(one.basis, expected.unit_vectors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.norms, expected.norms, atol=1e-3, rtol=1e-4)


def test_a_map_that_reads_several_sites_takes_the_basis_of_their_joined_states():
    subspace = a_subspace(Site(0), HERE, rank=2)
    fitted = fitted_map(affine_map(2), HERE, Site(0))
    parts = [subspace.at(site) for site in (HERE, Site(0))]
    joined = [
        torch.cat([part.tensors[f"{side}_states"] for part in parts], dim=-1)
        for side in ("positive", "negative")
    ]
    basis = learn_site_subspace(*joined, 2, pooled=False).basis
    expected = projector(orthonormal_rows(basis @ affine_map(2).weight))
    carried = carry_subspace(subspace, fitted).at(TARGET_SITE)
    torch.testing.assert_close(projector(carried.basis), expected, atol=1e-5, rtol=1e-5)


def test_through_any_other_map_the_basis_is_that_of_the_images():
    subspace = a_subspace(HERE, rank=3)
    one = subspace.at(HERE)
    images = [relu_map()(one.tensors[f"{side}_states"]) for side in ("positive", "negative")]
    expected = learn_site_subspace(*images, 3, pooled=False)
    carried = carry_subspace(subspace, fitted_map(relu_map(), HERE))
    assert torch.equal(carried.at(TARGET_SITE).basis, expected.basis)
    assert carried.provenance["rule"] == "difference"


def test_a_chain_is_the_product_of_the_linear_parts():
    subspace = a_subspace(HERE, rank=2)
    there = fitted_map(affine_map(), HERE)
    carried = carry_along(subspace, [there, onward()]).at(Site(0))
    weight = affine_map().weight.double() @ onward().map.weight.double()
    expected = projector(orthonormal_rows(subspace.at(HERE).basis.double() @ weight))
    torch.testing.assert_close(projector(carried.basis), expected, atol=1e-5, rtol=1e-4)


def test_a_carried_subspace_tells_where_it_came_from_and_its_files_keep_it(tmp_path):
    subspace = a_subspace(HERE, rank=2)
    carried = carry_subspace(subspace, fitted_map(affine_map(), HERE))
    assert (carried.model, carried.sites) == (identity_of("large", 4), (TARGET_SITE,))
    assert (carried.method, carried.positions, carried.pooled, carried.rank) == (
        "mean_difference_and_pca",
        "last:2",
        False,
        2,
    )
    assert carried.provenance["map_method"] == "ridge"
    assert carried.provenance["source_sites"] == ["resid_post[2]"]
    (shares,) = carried.provenance["shares"].values()
    assert shares == pytest.approx(carried.at(TARGET_SITE).shares.tolist(), abs=1e-5)
    certificate = carried.certificate
    assert certificate is not None
    assert not certificate.is_measured
    assert (certificate.source, certificate.target) == (subspace.model, carried.model)
    save_direction(tmp_path / "s", carried)
    assert load_subspace(tmp_path / "s").certificate == certificate


def test_subspaces_at_several_sites_are_joined_with_one_certificate():
    subspace = a_subspace(HERE)
    first = fitted_map(affine_map(), HERE)
    parts = [carry_subspace(subspace, replace(first, target_site=Site(i))) for i in (0, 1)]
    joined = at_several_sites(parts)
    assert joined.sites == (Site(0), Site(1))
    assert joined.certificate is not None
    assert joined.certificate.target_site == "resid_post[0], resid_post[1]"
    with pytest.raises(SiteError, match=r"two subspaces at resid_post\[0\]"):
        at_several_sites([parts[0], parts[0]])


def test_dimensions_that_do_not_arrive_are_refused():
    narrow = AffineMap(
        torch.outer(torch.ones(5), torch.ones(4)), torch.zeros(5), torch.zeros(4), "ridge"
    )
    with pytest.raises(FitError, match="number 2 adds nothing to those before it in width 4"):
        carry_subspace(a_subspace(HERE, rank=2), fitted_map(narrow, HERE))
    blind = AffineMap(torch.zeros(5, 4), torch.zeros(5), torch.zeros(4), "ridge")
    with pytest.raises(FitError, match="number 1 adds nothing"):
        carry_subspace(a_subspace(HERE, rank=1), fitted_map(blind, HERE))
    with pytest.raises(FitError, match="number 5 adds nothing"):
        carry_subspace(a_subspace(HERE, rank=5), fitted_map(affine_map(), HERE))


def test_what_directions_are_refused_for_subspaces_are_refused_for():
    subspace = a_subspace(HERE)
    with pytest.raises(IdentityError, match="subspace belongs to other@weights-, not to small"):
        carry_subspace(a_subspace(HERE, name="other"), fitted_map(affine_map(), HERE))
    with pytest.raises(SiteError, match=r"the subspace was not learned at resid_post\[3\]:"):
        carry_subspace(subspace, fitted_map(affine_map(2), HERE, Site(3)))
    with pytest.raises(ConfigError, match="the autoencoder map has no linear part"):
        carry_subspace(subspace, fitted_map(relu_map(), HERE), "linear")
    with pytest.raises(ConfigError, match="a basis has no point of its own"):
        carry_subspace(subspace, fitted_map(affine_map(), HERE), "map_of_vector")


def test_a_random_subspace_has_the_rank_and_moves_states_as_far():
    positive, negative, _ = two_classes(n=12, d_model=40)
    site = learn_site_subspace(positive, negative, 3, pooled=False)
    subspace = replace(a_subspace(HERE, d_model=40, rank=3), by_site={HERE: site})
    drawn = random_subspace_like(subspace, seeded(1))
    one = drawn.at(HERE)
    assert (drawn.method, drawn.certificate, one.rank) == ("random", None, 3)
    assert float((one.basis @ site.basis.mT).norm()) < 1
    for sign, start, goal in (
        (-1, site.positive_mean, one.negative_coordinates),
        (1, site.negative_mean, one.positive_coordinates),
    ):
        moved = goal - start @ one.basis.mT
        expected = sign * (site.positive_coordinates - site.negative_coordinates)
        torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)
