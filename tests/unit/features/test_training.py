from dataclasses import replace

import pytest
import torch

from isthmus.core.errors import ConfigError, FitError
from isthmus.features import TopKSettings, reconstruction_quality, train_sparse_autoencoder
from isthmus.features.training import _initial, _losses

QUICK = TopKSettings(
    k=2, expansion=2, n_steps=400, batch_size=256, learning_rate=1e-2, dead_after=20
)


@pytest.fixture(autouse=True)
def one_thread():
    """Steps this small only wait for each other when several threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(n: int = 4000, d_model: int = 12, n_features: int = 16, seed: int = 0):
    """Rows that are sums of two atoms out of a dictionary, off the origin, and the dictionary."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n_features, d_model, generator=generator)
    atoms = torch.nn.functional.normalize(atoms, dim=1)
    chosen = torch.rand(n, n_features, generator=generator).topk(2).indices
    sizes = 5 + 5 * torch.rand(n, 2, generator=generator)
    codes = torch.zeros(n, n_features).scatter(1, chosen, sizes)
    return codes @ atoms + 20, atoms


def trained(settings: TopKSettings = QUICK, seed: int = 0):
    rows, atoms = planted()
    return train_sparse_autoencoder(rows, settings, torch.Generator().manual_seed(seed)), atoms


def test_a_planted_dictionary_is_recovered():
    autoencoder, atoms = trained()
    alike = atoms @ autoencoder.decoder_weight.T
    assert (alike.amax(1) > 0.95).float().mean() >= 0.75
    fresh, _ = planted(seed=0)
    assert reconstruction_quality(autoencoder, fresh).fvu < 0.1


def test_decoder_rows_have_norm_one_and_at_most_k_features_are_active():
    autoencoder, _ = trained(replace(QUICK, n_steps=5))
    norms = autoencoder.decoder_weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    rows, _ = planted(seed=1)
    assert (autoencoder.encode(rows) > 0).sum(1).max() <= 2


def test_scale_and_origin_of_the_rows_do_not_matter():
    rows, _ = planted()
    settings = replace(QUICK, n_steps=20)
    plain = train_sparse_autoencoder(rows, settings, torch.Generator().manual_seed(0))
    moved = train_sparse_autoencoder(50 * rows + 300, settings, torch.Generator().manual_seed(0))
    expected = 50 * plain.reconstruct(rows) + 300
    torch.testing.assert_close(moved.reconstruct(50 * rows + 300), expected, rtol=1e-3, atol=1.0)


def test_a_dead_feature_learns_from_the_error_of_the_others_and_only_then():
    rows, _ = planted(64)
    weights = _initial(12, QUICK, torch.Generator().manual_seed(0), rows.device)
    dead = torch.zeros(24, dtype=torch.bool)
    dead[7] = True
    with torch.no_grad():
        weights.encoder_weight[:, 7] = 0
        weights.encoder_bias[7] = 1e-3  # active for no row beside others that are larger
    learned = []
    for weight in (0.0, 1.0):
        settings = replace(QUICK, revival_weight=weight)
        _, loss, is_active = _losses(weights, rows - rows.mean(0), dead, settings)
        assert not is_active[7]
        (gradient,) = torch.autograd.grad(loss, [weights.decoder_weight])
        learned.append(gradient[7].norm().item())
    assert learned[0] == 0
    assert learned[1] > 0


def test_the_loss_that_is_told_falls_and_the_same_seed_gives_the_same_features():
    rows, _ = planted()
    told: list[float] = []
    settings = replace(QUICK, n_steps=60)
    first = train_sparse_autoencoder(
        rows, settings, torch.Generator().manual_seed(3), lambda _step, loss: told.append(loss)
    )
    again = train_sparse_autoencoder(rows, settings, torch.Generator().manual_seed(3))
    assert len(told) == 60
    assert told[-1] < 0.7 * told[0]
    assert torch.equal(first.decoder_weight, again.decoder_weight)


def test_what_cannot_be_trained_is_refused():
    generator = torch.Generator()
    with pytest.raises(FitError, match="at least 2 different rows"):
        train_sparse_autoencoder(torch.ones(5, 3), QUICK, generator)
    with pytest.raises(ConfigError, match="raise the expansion"):
        train_sparse_autoencoder(planted()[0], replace(QUICK, k=99), generator)
    with pytest.raises(ConfigError, match="n_steps is 0"):
        replace(QUICK, n_steps=0)
    with pytest.raises(ConfigError, match="learning_rate"):
        replace(QUICK, learning_rate=0.0)
