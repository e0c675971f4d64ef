"""The autoencoder trains as a plain torch module under torch's own AdamW does."""

import pytest
import torch
from tests.unit.maps.pairs import linear_pairs, random_weight, seeded
from torch import nn

from isthmus.maps import AutoencoderSettings, fit_autoencoder


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("is_nonlinear", [True, False])
def test_training_equals_a_plain_torch_loop(*, is_nonlinear: bool, schedule: str):
    x, y = (side.float() for side in linear_pairs(64, random_weight(5, 4)))
    settings = AutoencoderSettings(
        is_nonlinear=is_nonlinear, learning_rate=1e-2, batch_size=64, schedule=schedule
    )
    d_hidden = settings.d_hidden(5, 4)
    # With one batch per epoch the order of rows does not matter, and the draws are the two layers'.
    generator = seeded(3)
    layers = [nn.Linear(5, d_hidden), nn.Linear(d_hidden, 4)]
    for layer in layers:
        bound = layer.in_features**-0.5
        with torch.no_grad():
            weight = torch.rand(layer.weight.T.shape, generator=generator)
            layer.weight.copy_((weight.T * 2 - 1) * bound)
            layer.bias.copy_((torch.rand(layer.bias.shape, generator=generator) * 2 - 1) * bound)
    middle = nn.ReLU() if is_nonlinear else nn.Identity()
    plain = nn.Sequential(layers[0], middle, layers[1])
    optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=3)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.mse_loss(plain(x), y).backward()
        optimiser.step()
        if schedule == "cosine":
            scheduler.step()
    fitted = fit_autoencoder(x, y, settings, seeded(3))
    torch.testing.assert_close(fitted(x), plain(x).detach(), rtol=1e-4, atol=1e-5)
