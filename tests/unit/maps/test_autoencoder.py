import math
from dataclasses import replace

import pytest
import torch
from tests.unit.maps.pairs import (
    independent_noise,
    linear_pairs,
    random_weight,
    seeded,
    without_shape_checks,
)
from torch import nn

from isthmus.core.errors import ConfigError, FitError, NonFiniteError, ShapeError
from isthmus.maps import (
    AffineMap,
    AutoencoderMap,
    AutoencoderSettings,
    PairedRows,
    fit_autoencoder,
    held_out_quality_on_rows,
)
from isthmus.maps.autoencoder_training import STEPS_PER_LOOK

QUICK = AutoencoderSettings(learning_rate=1e-2, n_steps=5, batch_size=16)


def float_pairs(n: int, d_source: int = 6, d_target: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = linear_pairs(n, random_weight(d_source, d_target))
    return x.float(), y.float()


def test_the_papers_settings_are_those_of_its_table():
    paper, affine = AutoencoderSettings.paper(), AutoencoderSettings.paper_affine()
    assert (paper.learning_rate, paper.n_epochs, paper.schedule) == (1e-4, 3, "constant")
    assert paper.is_nonlinear
    assert not paper.is_standardised
    assert affine == replace(paper, is_nonlinear=False)


@pytest.mark.parametrize(
    ("d_source", "d_target", "d_hidden"), [(896, 896, 896), (896, 1536, 1173), (2048, 3072, 2508)]
)
def test_the_papers_bottleneck_has_the_width_that_gives_its_parameter_count(
    d_source, d_target, d_hidden
):
    assert AutoencoderSettings.paper().d_hidden(d_source, d_target) == d_hidden


@pytest.mark.parametrize("is_standardised", [False, True])
def test_the_frozen_map_has_the_last_loss_of_its_training(is_standardised):
    x, y = float_pairs(16)
    settings = replace(QUICK, is_standardised=is_standardised, n_steps=3, weight_decay=0.0)
    losses: list[float] = []
    fit_autoencoder(x, y, settings, seeded(), lambda _step, loss: losses.append(loss))
    earlier = fit_autoencoder(x, y, replace(settings, n_steps=2), seeded())
    error = (earlier(x) - y) / (y.std(0) if is_standardised else 1.0)
    assert error.square().mean().item() == pytest.approx(losses[2], rel=1e-4)


def test_the_affine_variant_multiplies_out_to_what_its_two_layers_compute():
    x, y = float_pairs(16)
    settings = replace(QUICK, is_nonlinear=False, n_steps=3)
    losses: list[float] = []
    fit_autoencoder(x, y, settings, seeded(), lambda _step, loss: losses.append(loss))
    fitted = fit_autoencoder(x, y, replace(settings, n_steps=2), seeded())
    assert isinstance(fitted, AffineMap)
    assert fitted.method == "sgd_affine"
    assert (fitted(x) - y).square().mean().item() == pytest.approx(losses[2], rel=1e-4)


def test_the_affine_variant_has_at_most_the_rank_of_its_bottleneck():
    x, y = float_pairs(64, d_source=9, d_target=4)
    settings = replace(QUICK, is_nonlinear=False, hidden_factor=0.4)
    fitted = fit_autoencoder(x, y, settings, seeded())
    assert isinstance(fitted, AffineMap)
    assert torch.linalg.matrix_rank(fitted.weight, rtol=1e-5) == settings.d_hidden(9, 4) == 2


def test_the_relu_map_is_a_two_layer_perceptron():
    x, y = float_pairs(64)
    fitted = fit_autoencoder(x, y, QUICK, seeded())
    assert isinstance(fitted, AutoencoderMap)
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4))
    values = (fitted.encoder_weight.T, fitted.encoder_bias)
    values += (fitted.decoder_weight.T, fitted.decoder_bias)
    plain.load_state_dict(dict(zip(plain.state_dict(), values, strict=True)))
    torch.testing.assert_close(fitted(x), plain(x).detach())
    assert not fitted.is_affine
    assert (fitted.d_source, fitted.d_target) == (6, 4)


def test_a_well_trained_autoencoder_fits_what_no_affine_map_can():
    x, _ = independent_noise(3000, 4, 1, seed=0)
    y = torch.cat([x.abs() * 50 + 1000, x], dim=1)
    settings = replace(
        AutoencoderSettings.well_trained(n_steps=400),
        hidden_factor=4.0,
        learning_rate=1e-2,
        batch_size=256,
    )
    fitted = fit_autoencoder(x[:2000].float(), y[:2000].float(), settings, seeded())
    quality = held_out_quality_on_rows(fitted, x[2000:], y[2000:], n_train=2000)
    assert quality.r2_held_out > 0.99


@pytest.mark.parametrize("preset", ["paper", "paper_affine", "well_trained"])
def test_a_fit_repeats_with_its_generator_and_leaves_its_data_unchanged(preset: str):
    settings = replace(getattr(AutoencoderSettings, preset)(), n_steps=4, batch_size=16)
    x, y = float_pairs(50)
    kept = x.clone(), y.clone()
    global_state = torch.get_rng_state()
    first, again, other = (fit_autoencoder(x, y, settings, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize(("n_epochs", "n_steps", "expected"), [(3, None, 12), (3, 5, 5), (1, 9, 9)])
def test_steps_are_counted_in_epochs_unless_given(n_epochs, n_steps, expected):
    x, y = float_pairs(50)
    settings = AutoencoderSettings(n_epochs=n_epochs, n_steps=n_steps, batch_size=16)
    steps: list[int] = []
    fit_autoencoder(x, y, settings, seeded(), lambda step, _loss: steps.append(step))
    assert steps == list(range(1, expected + 1))


def test_training_that_starts_at_zero_starts_from_the_mean_of_the_targets():
    x, y = float_pairs(64)
    settings = replace(QUICK, is_standardised=True, starts_at_zero=True, learning_rate=1e-12)
    fitted = fit_autoencoder(x, y, settings, seeded())
    torch.testing.assert_close(fitted(x), y.mean(0).expand(64, 4))


def overfitted(patience: int | None) -> tuple[list[int], float]:
    """How long training on a few noisy pairs went on, and how well it then does on others."""
    x, y = independent_noise(40, 6, 4, seed=0)
    other = PairedRows(*(side.float() for side in independent_noise(500, 6, 4, seed=1)))
    settings = AutoencoderSettings(
        hidden_factor=10.0,
        learning_rate=1e-2,
        n_steps=900,
        is_standardised=True,
        starts_at_zero=True,
        patience=patience,
    )
    steps: list[int] = []
    fitted = fit_autoencoder(
        x.float(), y.float(), settings, seeded(), lambda step, _: steps.append(step), other
    )
    quality = held_out_quality_on_rows(fitted, other.source, other.target, n_train=40)
    return steps, quality.r2_held_out


def test_with_patience_training_ends_and_the_best_weights_are_kept():
    endless, worse = overfitted(None)
    ended, better = overfitted(2)
    assert len(endless) == 900
    assert len(ended) == 2 * STEPS_PER_LOOK
    assert better > -0.1 > worse


def test_without_selection_pairs_patience_changes_nothing():
    x, y = float_pairs(64)
    made = [fit_autoencoder(x, y, replace(QUICK, patience=one), seeded()) for one in (None, 3)]
    assert torch.equal(made[0](x), made[1](x))


def test_a_coordinate_that_never_varies_is_reproduced():
    x, y = float_pairs(64)
    x[:, 2], y[:, 1] = 5.0, 7.0
    settings = replace(AutoencoderSettings.well_trained(300), learning_rate=1e-2, batch_size=64)
    fitted = fit_autoencoder(x, y, settings, seeded())
    torch.testing.assert_close(fitted(x)[:, 1], y[:, 1], atol=0.05, rtol=0)


def test_a_fit_works_where_gradients_are_switched_off():
    x, y = float_pairs(20)
    with torch.no_grad():
        fitted = fit_autoencoder(x, y, QUICK, seeded())
    assert torch.equal(fitted(x), fit_autoencoder(x, y, QUICK, seeded())(x))


def test_a_fit_that_diverges_is_refused_with_the_step_and_the_rate():
    x, y = float_pairs(64)
    with pytest.raises(NonFiniteError, match=r"at step \d+: lower the learning rate from 1e\+30"):
        fit_autoencoder(x, y, replace(QUICK, learning_rate=1e30), seeded())


def test_data_that_cannot_be_fitted_is_refused():
    x, y = float_pairs(20)
    with (
        without_shape_checks(),
        pytest.raises(ShapeError, match="20 source rows and 19 target rows"),
    ):
        fit_autoencoder(x, y[:-1], QUICK, seeded())
    with pytest.raises(FitError, match="at least 2 pairs, got 1"):
        fit_autoencoder(x[:1], y[:1], QUICK, seeded())
    for value in (1.0, 0.1, 12345.678):
        with pytest.raises(FitError, match="equal source activations"):
            fit_autoencoder(torch.full_like(x, value), y, QUICK, seeded())
    x[3, 3] = math.nan
    with pytest.raises(NonFiniteError, match="1 NaN or infinite values in source"):
        fit_autoencoder(x, y, QUICK, seeded())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_factor", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("n_epochs", 0),
        ("n_steps", 0),
        ("batch_size", 0),
        ("weight_decay", -0.1),
        ("patience", 0),
    ],
)
def test_settings_outside_their_range_are_refused(name: str, value: float):
    with pytest.raises(ConfigError, match=f"{name} = {value}"):
        replace(AutoencoderSettings.paper(), **{name: value})


def test_layers_that_do_not_meet_and_points_of_another_width_are_refused():
    fitted = fit_autoencoder(*float_pairs(20), QUICK, seeded())
    assert isinstance(fitted, AutoencoderMap)
    with without_shape_checks(), pytest.raises(ShapeError, match="layers of shapes"):
        replace(fitted, decoder_weight=torch.zeros(5, 4))
    with pytest.raises(ShapeError, match="width 6, got width 4"):
        fitted(torch.zeros(2, 4))
    with pytest.raises(NonFiniteError, match="decoder_bias"):
        replace(fitted, decoder_bias=torch.full((4,), math.nan))
