from dataclasses import replace

import pytest
import torch
from tests.manifests import rewrite_fields
from tests.unit.directions.states import a_direction, identity_of
from tests.unit.maps.pairs import linear_pairs, moments_of, random_weight, seeded

from isthmus.carrying import carry_direction, coordinate_targets, cosine
from isthmus.core.errors import ArtifactError, ConfigError, FitError, IdentityError, SiteError
from isthmus.core.sites import Site
from isthmus.directions import METHODS, load_direction, save_direction
from isthmus.maps import (
    ActivationMap,
    AffineMap,
    AutoencoderMap,
    FittedMap,
    MapQuality,
    ProcrustesFitter,
    RidgeFitter,
)

TARGET_SITE = Site(1)


def fitted_map(activation_map: ActivationMap, *sites: Site, target_width: int = 4) -> FittedMap:
    return FittedMap(
        map=activation_map,
        source=identity_of("small", 5),
        target=identity_of("large", target_width),
        source_sites=sites,
        target_site=TARGET_SITE,
        quality=MapQuality(0.9, 0.1, 100, 20),
    )


def affine_map(n_sites: int = 1) -> AffineMap:
    weight = random_weight(5 * n_sites, 4).float()
    return AffineMap(weight, torch.full((5 * n_sites,), 10.0), torch.full((4,), -3.0), "ridge")


def relu_map(n_sites: int = 1) -> AutoencoderMap:
    generator = seeded(1)
    return AutoencoderMap(
        source_mean=torch.full((5 * n_sites,), 10.0),
        encoder_weight=torch.randn(5 * n_sites, 9, generator=generator),
        encoder_bias=torch.randn(9, generator=generator),
        decoder_weight=torch.randn(9, 4, generator=generator),
        decoder_bias=torch.full((4,), 50.0),
    )


@pytest.mark.parametrize("pooled", [False, True])
def test_the_difference_rule_equals_the_linear_rule_for_affine_maps(pooled):
    direction = a_direction(Site(2), Site(0), pooled=pooled)
    fitted = fitted_map(affine_map(2), Site(0), Site(2))
    linear, difference, auto = (
        carry_direction(direction, fitted, rule).at(TARGET_SITE).vectors
        for rule in ("linear", "difference", "auto")
    )
    torch.testing.assert_close(difference, linear, rtol=1e-4, atol=1e-4)
    assert torch.equal(auto, linear)


@pytest.mark.parametrize("method", METHODS)
def test_directions_of_every_method_arrive_as_their_image_under_a_learned_map(method: str):
    weight = random_weight(10, 4)
    pairs = moments_of(*linear_pairs(200, weight))
    fitted = fitted_map(RidgeFitter((1e-9,)).fit(pairs, pairs), Site(0), Site(3))
    direction = a_direction(Site(0), Site(3), method=method)
    joined = torch.cat([direction.at(Site(0)).vectors, direction.at(Site(3)).vectors], dim=1)
    carried = carry_direction(direction, fitted).at(TARGET_SITE)
    torch.testing.assert_close(carried.vectors, (joined.double() @ weight).float())
    torch.testing.assert_close(
        carried.positive_states.mean(0), carried.positive_mean, rtol=1e-4, atol=1e-4
    )


def test_the_order_of_source_sites_is_the_maps_order():
    direction = a_direction(Site(0), Site(2))
    forward = carry_direction(direction, fitted_map(affine_map(2), Site(0), Site(2)))
    backward = carry_direction(direction, fitted_map(affine_map(2), Site(2), Site(0)))
    weight = affine_map(2).weight
    first, second = (direction.at(site).vectors for site in (Site(0), Site(2)))
    torch.testing.assert_close(
        forward.at(TARGET_SITE).vectors, first @ weight[:5] + second @ weight[5:]
    )
    torch.testing.assert_close(
        backward.at(TARGET_SITE).vectors, second @ weight[:5] + first @ weight[5:]
    )


def test_a_map_that_is_not_affine_carries_the_mean_difference_of_images():
    direction = a_direction(Site(2))
    activation_map = relu_map()
    carried = carry_direction(direction, fitted_map(activation_map, Site(2))).at(TARGET_SITE)
    one = direction.at(Site(2))
    for position in range(2):
        images = [
            activation_map(positive) - activation_map(negative)
            for positive, negative in zip(
                one.positive_states[:, position], one.negative_states[:, position], strict=True
            )
        ]
        torch.testing.assert_close(carried.vectors[position], torch.stack(images).mean(0))


def test_mapping_the_vector_as_a_point_is_another_direction():
    direction = a_direction(Site(2))
    fitted = fitted_map(relu_map(), Site(2))
    as_point = carry_direction(direction, fitted, "map_of_vector").at(TARGET_SITE).vectors
    assert torch.equal(as_point, relu_map()(direction.at(Site(2)).vectors))
    difference = carry_direction(direction, fitted, "difference").at(TARGET_SITE).vectors
    assert (cosine(as_point, difference) < 0.9).all()


@pytest.mark.parametrize("make", [affine_map, relu_map])
@pytest.mark.parametrize("rule", ["auto", "difference", "map_of_vector"])
def test_states_go_through_the_whole_map_and_means_are_the_means_of_their_images(make, rule):
    direction, activation_map = a_direction(Site(2)), make()
    one = direction.at(Site(2))
    carried = carry_direction(direction, fitted_map(activation_map, Site(2)), rule).at(TARGET_SITE)
    for side in ("positive", "negative"):
        images = activation_map(one.tensors[f"{side}_states"])
        assert torch.equal(carried.tensors[f"{side}_states"], images)
        torch.testing.assert_close(carried.tensors[f"{side}_mean"], images.double().mean(0).float())


def test_coordinate_targets_lie_as_far_apart_as_the_vector_is_long_through_any_map():
    for activation_map in (affine_map(), relu_map()):
        fitted = fitted_map(activation_map, Site(2))
        carried = carry_direction(a_direction(Site(2)), fitted).at(TARGET_SITE)
        on, off = coordinate_targets(carried)
        torch.testing.assert_close(on - off, carried.norms, rtol=1e-4, atol=1e-4)


def test_a_mean_through_an_affine_map_is_its_own_image_whatever_states_are_kept():
    direction, activation_map = a_direction(Site(2)), affine_map()
    one = direction.at(Site(2))
    elsewhere = replace(one, positive_mean=one.positive_mean + 1)
    moved = replace(direction, by_site={Site(2): elsewhere})
    carried = carry_direction(moved, fitted_map(activation_map, Site(2))).at(TARGET_SITE)
    assert torch.equal(carried.positive_mean, activation_map(elsewhere.positive_mean))


def test_a_carried_direction_tells_where_it_came_from():
    direction = a_direction(Site(2), method="pca", pooled=True)
    carried = carry_direction(direction, fitted_map(affine_map(), Site(2)))
    assert carried.model == identity_of("large", 4)
    assert carried.sites == (TARGET_SITE,)
    assert (carried.method, carried.positions, carried.pooled) == ("pca", "last:2", True)
    assert carried.provenance["rule"] == "linear"
    assert carried.provenance["map_method"] == "ridge"
    assert carried.provenance["map_quality"]["r2_held_out"] == 0.9
    assert carried.provenance["source_sites"] == ["resid_post[2]"]
    assert carried.provenance["source_model"]["name"] == "small"
    assert carried.provenance["source_provenance"] == {"seed": 0}
    certificate = carried.certificate
    assert certificate is not None
    assert not certificate.is_measured
    assert (certificate.source, certificate.target) == (direction.model, carried.model)
    assert (certificate.source_sites, certificate.target_site) == (
        ("resid_post[2]",),
        "resid_post[1]",
    )
    assert certificate.norms == {"vectors": carried.at(TARGET_SITE).norms.tolist()}


def test_files_of_a_carried_direction_keep_its_certificate_and_must_fit_it(tmp_path):
    carried = carry_direction(a_direction(Site(2)), fitted_map(affine_map(), Site(2)))
    save_direction(tmp_path / "kept", carried)
    assert load_direction(tmp_path / "kept").certificate == carried.certificate
    one = carried.at(TARGET_SITE)
    with pytest.raises(ArtifactError, match=r"vectors have norms .*, its certificate is about"):
        replace(carried, by_site={TARGET_SITE: replace(one, vectors=2 * one.vectors)})
    with pytest.raises(ArtifactError, match=r"is at resid_post\[0\], its certificate is about"):
        replace(carried, by_site={Site(0): one})
    with pytest.raises(IdentityError, match="the certificate is about large"):
        replace(carried, model=identity_of("other", 4))


def test_carrying_back_through_a_rotation_returns_the_direction():
    rotation = torch.linalg.qr(random_weight(5, 5)).Q
    x, y = linear_pairs(100, rotation)
    there = fitted_map(ProcrustesFitter().fit(moments_of(x, y)), Site(2), target_width=5)
    back = replace(
        there,
        map=ProcrustesFitter().fit(moments_of(y, x)),
        source=there.target,
        target=there.source,
        source_sites=(TARGET_SITE,),
        target_site=Site(2),
    )
    direction = a_direction(Site(2))
    returned = carry_direction(carry_direction(direction, there), back)
    for name, value in direction.at(Site(2)).tensors.items():
        torch.testing.assert_close(returned.at(Site(2)).tensors[name], value, rtol=1e-4, atol=1e-4)


def test_a_direction_of_another_model_is_refused():
    direction = a_direction(Site(2), name="other")
    with pytest.raises(IdentityError, match="direction belongs to other@weights-, not to small"):
        carry_direction(direction, fitted_map(affine_map(), Site(2)))


def test_a_direction_that_misses_a_site_of_the_map_is_refused_by_its_name():
    with pytest.raises(SiteError, match=r"not learned at resid_post\[3\]:"):
        carry_direction(a_direction(Site(2)), fitted_map(affine_map(2), Site(2), Site(3)))


def test_rules_that_cannot_be_carried_out_are_refused():
    direction = a_direction(Site(2))
    with pytest.raises(ConfigError, match="the autoencoder map has no linear part"):
        carry_direction(direction, fitted_map(relu_map(), Site(2)), "linear")
    blind = AffineMap(torch.zeros(5, 4), torch.zeros(5), torch.zeros(4), "ridge")
    with pytest.raises(FitError, match="zero at position"):
        carry_direction(direction, fitted_map(blind, Site(2)))


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields["certificate"]["map_quality"].update(r2_held_out=1.0),
        lambda fields: fields["certificate"].update(norms={}),
        lambda fields: fields.update(certificate=None),
        lambda fields: fields.update(positions="last:1"),
    ],
)
def test_a_certificate_that_was_changed_by_hand_is_refused(tmp_path, change):
    carried = carry_direction(a_direction(Site(2)), fitted_map(affine_map(), Site(2)))
    save_direction(tmp_path / "c", carried)
    load_direction(tmp_path / "c")
    rewrite_fields(tmp_path / "c", change, keeps_hash=True)
    with pytest.raises(ArtifactError, match="fields were changed by hand"):
        load_direction(tmp_path / "c")


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields["certificate"].update(target_site="resid_post[0]"),
        lambda fields: fields["certificate"].update(target_site=3),
        lambda fields: fields["certificate"].update(norms={"vectors": "long"}),
        lambda fields: fields["certificate"].update(norms={"vectors": [1.0, 1.0]}),
        lambda fields: fields["certificate"]["target"].update(settings=None),
        lambda fields: fields.update(certificate="good"),
    ],
)
def test_a_certificate_that_says_what_cannot_be_is_refused_without_any_hash(tmp_path, change):
    carried = carry_direction(a_direction(Site(2)), fitted_map(affine_map(), Site(2)))
    save_direction(tmp_path / "c", carried)
    rewrite_fields(tmp_path / "c", change)
    with pytest.raises(ArtifactError):
        load_direction(tmp_path / "c")
