import pytest
import torch

from isthmus.core.errors import ConfigError, ShapeError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, pad_batch
from isthmus.interventions import ablated_everywhere


def text(n_tokens: int) -> EncodedText:
    ends = tuple(range(1, n_tokens + 1))
    return EncodedText("x" * n_tokens, ends, ends, (True,) * n_tokens, n_tokens, None)


def test_every_token_is_meant_even_special_ones_and_padding_is_not():
    batch = pad_batch([text(2), text(4)], 0, "left")
    direction = torch.tensor([3.0, 4.0])
    placed = ablated_everywhere(direction, [Site(0), Site(2)])(batch)
    assert [one.site for one in placed] == [Site(0), Site(2)]
    for one in placed:
        assert torch.equal(one.given, batch.is_real)
        assert bool(one.generated.all())
        edited = one.edit(torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0)))
        assert float((edited @ direction).abs().max()) < 1e-5


def test_an_ablation_needs_a_site_and_a_direction():
    with pytest.raises(ConfigError, match="without a site"):
        ablated_everywhere(torch.ones(2), [])
    with pytest.raises(ShapeError, match="zero"):
        ablated_everywhere(torch.zeros(2), [Site(0)])
