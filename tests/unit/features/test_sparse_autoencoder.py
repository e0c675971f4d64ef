import pytest
import torch
from tests.unit.maps.pairs import without_shape_checks

from isthmus.core.errors import ConfigError, FitError, NonFiniteError, ShapeError
from isthmus.features import SparseAutoencoder, reconstruction_quality
from isthmus.features.patching import random_features, rank_features, with_feature
from isthmus.features.sparse_autoencoder import sparsest


def an_autoencoder(
    k: int | None = 3, d_model: int = 4, n: int = 12, **changes
) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(n, d_model, generator=generator), dim=1)
    bias = torch.randn(d_model, generator=generator)
    values = {"decoder_weight": decoder, "encoder_weight": decoder.T.clone(), "k": k}
    values |= {"encoder_bias": torch.zeros(n), "decoder_bias": bias}
    return SparseAutoencoder(**(values | changes))


def states(n: int = 50, d_model: int = 4) -> torch.Tensor:
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(1))


def test_topk_keeps_the_k_largest_preactivations_and_nothing_else():
    autoencoder = an_autoencoder()
    encoded, features = autoencoder.preactivations(states()), autoencoder.encode(states())
    assert ((features > 0).sum(-1) == (encoded.topk(3).values > 0).sum(-1)).all()
    kept = features > 0
    assert torch.equal(features[kept], encoded[kept])
    left_out = encoded.masked_fill(kept, -torch.inf).amax(-1)
    assert (torch.where(kept, encoded, torch.inf).amin(-1) >= left_out).all()


def test_topk_never_returns_a_negative_feature_even_if_fewer_than_k_are_positive():
    features = sparsest(torch.tensor([[-1.0, 2.0, -3.0]]), 2)
    assert torch.equal(features, torch.tensor([[0.0, 2.0, 0.0]]))


def test_an_orthonormal_dictionary_with_every_feature_reconstructs_exactly():
    eye = torch.eye(4)
    both = torch.cat([eye, -eye])
    autoencoder = an_autoencoder(
        8, n=8, decoder_weight=both, encoder_weight=both.T.clone(), encoder_bias=torch.zeros(8)
    )
    torch.testing.assert_close(autoencoder.reconstruct(states()), states())
    quality = reconstruction_quality(autoencoder, states())
    assert quality.fvu < 1e-10
    assert quality.n_active == 4


def test_relu_and_jumprelu_differ_only_between_zero_and_the_threshold():
    threshold = torch.full((12,), 0.5)
    relu = an_autoencoder(None, activation="relu").encode(states())
    jump = an_autoencoder(None, activation="jumprelu", threshold=threshold).encode(states())
    assert torch.equal(jump, torch.where(relu > 0.5, relu, 0.0))
    assert ((relu > 0) & (relu <= 0.5)).any()


def test_a_constant_reconstruction_explains_nothing_and_leaves_every_feature_dead():
    mean = states().mean(0)
    autoencoder = an_autoencoder(encoder_bias=torch.full((12,), -100.0), decoder_bias=mean)
    quality = reconstruction_quality(autoencoder, states())
    assert quality.fvu == pytest.approx(1.0)
    assert quality.dead_share == 1


def test_setting_a_feature_moves_the_reconstruction_along_its_decoder_row():
    autoencoder = an_autoencoder(12)
    encoded = autoencoder.preactivations(states())
    raised = with_feature(autoencoder, states(), 5, encoded[:, 5].relu() + 2)
    plain = autoencoder.reconstruct(states())
    torch.testing.assert_close(raised - plain, 2 * autoencoder.decoder_weight[5].expand(50, 4))


def test_setting_a_feature_to_its_own_value_changes_nothing():
    autoencoder = an_autoencoder()
    own = autoencoder.preactivations(states())[:, 2]
    same = with_feature(autoencoder, states(), 2, own)
    assert torch.equal(same, autoencoder.reconstruct(states()))


def test_a_feature_that_is_set_high_displaces_the_weakest_active_one():
    autoencoder = an_autoencoder(1)
    put = with_feature(autoencoder, states(), 0, torch.full((50,), 99.0))
    expected = 99 * autoencoder.decoder_weight[0] + autoencoder.decoder_bias
    torch.testing.assert_close(put, expected.expand(50, 4))


def test_the_feature_that_separates_two_classes_ranks_first():
    autoencoder = an_autoencoder(12)
    moved = states() + 3 * autoencoder.decoder_weight[7]
    ranked = rank_features(autoencoder, moved, states(), 4)
    assert ranked.indices[0] == 7
    assert list(ranked.differences) == sorted(ranked.differences, reverse=True)
    assert all(value > 0 for value in ranked.differences)


def test_random_features_are_alive_and_not_the_excluded_ones():
    autoencoder = an_autoencoder(2)
    alive = (autoencoder.encode(states()) > 0).any(0).nonzero()[:, 0].tolist()
    excluded = tuple(alive[:2])
    generator = torch.Generator().manual_seed(0)
    drawn = random_features(autoencoder, states(), excluded, 99, generator)
    assert sorted(drawn) == sorted(set(alive) - set(excluded))


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ConfigError, match="'topk' takes a k"):
        an_autoencoder(None)
    with pytest.raises(ConfigError, match="'topk' takes a k"):
        an_autoencoder(3, activation="relu")
    with pytest.raises(ConfigError, match="k is 13, expected 1 to 12"):
        an_autoencoder(13)
    with pytest.raises(NonFiniteError, match="encoder_bias holds NaN"):
        an_autoencoder(encoder_bias=torch.full((12,), torch.nan))
    with pytest.raises(FitError, match="at least 2 different rows"):
        reconstruction_quality(an_autoencoder(), torch.ones(3, 4))
    with without_shape_checks(), pytest.raises(ShapeError, match="takes width 4"):
        an_autoencoder().encode(torch.ones(2, 5))
