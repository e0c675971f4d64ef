import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isthmus.models.muon import Muon, orthogonalised
from isthmus.models.training import has_bfloat16

sizes = st.integers(min_value=1, max_value=24)


@settings(deadline=None, max_examples=30)
@given(sizes, sizes, st.integers(0, 99), st.floats(1e-3, 1e3))
def test_orthogonalised_matrices_keep_their_singular_vectors(n_rows, n_columns, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    matrix = scale * torch.randn(n_rows, n_columns, generator=generator)
    before = matrix.clone()
    found = orthogonalised(matrix)
    assert torch.equal(matrix, before)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.mT @ found @ right.mT
    assert (inside - inside.diag().diag()).abs().max() < 1e-3
    # Of values that are no smaller than a tenth of all together none is left behind.
    kept = inside.diag()[values > 0.1 * values.norm()]
    assert ((kept > 0.65) & (kept < 1.25)).all()


def test_of_zeros_nothing_but_zeros_is_made():
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_steps_are_those_of_torchs_own_up_to_its_bfloat16(shape):
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    mine = Muon([ours], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1)
    for _ in range(6):
        gradient = torch.randn(shape)
        for parameter, optimiser in ((ours, mine), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimiser.step()
    moved = (theirs - 1).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.02 * moved


def test_a_matrix_without_a_gradient_stays():
    still, moving = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    moving.grad = torch.eye(2)
    assert Muon([still, moving], lr=0.1, weight_decay=0.5).step(lambda: 3.0) == 3.0
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moving, torch.ones(2, 2))


def test_bfloat16_is_had_where_the_processor_says_so_and_never_missed_where_it_is_emulated():
    capabilities = torch.cpu.get_capabilities()
    named = {name for name, there in capabilities.items() if there is True and "bf16" in name}
    assert has_bfloat16(torch.device("cpu")) == bool(named & {"amx_bf16", "avx512_bf16", "bf16"})
    assert has_bfloat16(torch.device("meta"))
