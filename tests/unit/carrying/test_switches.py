from pathlib import Path

import pytest
import torch
from tests.manifests import rewrite_fields

from isthmus.carrying.switch_files import load_switch, save_switch
from isthmus.carrying.switches import Switch, factors, fit_affine_edit, rotated_switch
from isthmus.core.errors import ArtifactError, ConfigError, IdentityError, ShapeError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site, Stream
from isthmus.interventions.affine import AffineEdit
from isthmus.maps.moments import PairMoments

D, N = 6, 400


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments(x: torch.Tensor, y: torch.Tensor) -> PairMoments:
    made = PairMoments(x.shape[1], y.shape[1])
    made.update(x, y)
    return made


def identity(name: str) -> ModelIdentity:
    return ModelIdentity(name, f"weights of {name}", "tokens", D, 3)


def switch(**changes: object) -> Switch:
    edits = {
        Site(1): AffineEdit(drawn(D, 2), drawn(2, D, seed=1), drawn(D), drawn(D, seed=2)),
        Site(0, Stream.RESID_PRE): AffineEdit(drawn(D, D, seed=5), None, drawn(D), drawn(D)),
    }
    given = {
        "edits": edits,
        "base": identity("base"),
        "fine_tuned": identity("tuned"),
        "to": "base",
        "method": "sequential",
        "quality": {"agreement": 0.5},
        "provenance": {"seed": 3},
    }
    return Switch(**(given | changes))


def anisotropic(n: int, seed: int) -> torch.Tensor:
    return drawn(n, D, seed=seed) @ (drawn(D, D, seed=9) * torch.logspace(-1, 1, D)) + 5


def test_a_full_map_reproduces_states_that_differ_by_an_affine_map():
    a, b = drawn(D, D, seed=3) / 3, drawn(D, seed=4)
    train, held_out = anisotropic(N, 0), anisotropic(50, 1)
    edit = fit_affine_edit(moments(train, train @ a + b), moments(held_out, held_out @ a + b), None)
    got = edit(held_out[None])[0]
    torch.testing.assert_close(got, held_out + held_out @ a + b, rtol=1e-3, atol=1e-3)


def test_a_map_of_low_rank_reproduces_a_difference_of_that_rank():
    a = drawn(D, 2, seed=3) @ drawn(2, D, seed=4)
    x, other = anisotropic(N, 0), anisotropic(50, 1)
    edit = fit_affine_edit(moments(x, x @ a), moments(other, other @ a), 2)
    assert edit.n_parameters == 2 * 2 * D + D
    torch.testing.assert_close(edit.change(other), other @ a, rtol=1e-3, atol=1e-2)


def loss(edit: AffineEdit, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((edit.change(x) - y).square().sum())


def test_no_other_map_of_the_rank_leaves_less_unexplained():
    x = anisotropic(N, 0)
    y = x @ drawn(D, D, seed=6) + drawn(N, D, seed=7)
    pairs = moments(x, y)
    edit = fit_affine_edit(pairs, pairs, 2)
    # Alternating least squares from many starts finds the best of rank 2 by brute force.
    xc, yc = x - x.mean(0), y - y.mean(0)
    found = []
    for start in range(3):
        up = drawn(2, D, seed=20 + start)
        for _ in range(60):
            down = torch.linalg.lstsq(xc, yc @ torch.linalg.pinv(up)).solution
            up = torch.linalg.lstsq(xc @ down, yc).solution
        found.append(float((xc @ down @ up - yc).square().sum()))
    assert loss(edit, x, y) <= min(found) * 1.0005
    full = fit_affine_edit(pairs, pairs, None)
    cut = AffineEdit(*factors(full.down, 2), full.mean, full.bias)
    assert loss(edit, x, y) < 0.99 * loss(cut, x, y), "cutting the weights ignores the states"


def test_rank_zero_is_the_mean_of_what_is_missing():
    x, y = anisotropic(N, 0), drawn(N, D) + 2
    edit = fit_affine_edit(moments(x, y), moments(x, y), 0)
    assert edit.n_parameters == D
    torch.testing.assert_close(edit(x[None])[0], x + y.mean(0))


def test_a_rotated_switch_adds_as_much_at_every_state_but_elsewhere():
    one, x = switch(), drawn(1, 40, D, seed=8)
    other = rotated_switch(one, torch.Generator().manual_seed(0))
    for site in one.sites:
        mine, theirs = one.edits[site].change(x), other.edits[site].change(x)
        torch.testing.assert_close(theirs.norm(dim=-1), mine.norm(dim=-1), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(mine, theirs, atol=0.1)
    assert other.n_parameters == one.n_parameters


def test_a_switch_knows_its_carrier_its_order_and_its_size():
    one = switch()
    assert one.carrier == one.fine_tuned
    assert switch(to="fine_tuned").carrier == one.base
    assert one.sites == (Site(0, Stream.RESID_PRE), Site(1))
    assert one.n_parameters == (2 * 2 * D + D) + (D * D + D)
    assert one.intervention().sites == one.sites


def test_a_switch_that_fits_nothing_is_refused():
    with pytest.raises(ConfigError, match="without a site"):
        switch(edits={})
    wide = ModelIdentity("wide", "w", "tokens", D + 1, 3)
    with pytest.raises(ShapeError, match="width"):
        switch(fine_tuned=wide)


def test_a_saved_switch_comes_back_bit_for_bit(tmp_path: Path):
    one = switch()
    save_switch(tmp_path / "s", one)
    back = load_switch(tmp_path / "s", one.fine_tuned)
    x = drawn(2, 3, D, seed=3)
    assert all(torch.equal(back.edits[s](x), one.edits[s](x)) for s in one.sites)
    assert (back.to, back.positions, dict(back.quality)) == ("base", "all", {"agreement": 0.5})
    assert back.provenance == {"seed": 3}


def test_loading_on_another_model_is_refused_with_the_fix(tmp_path: Path):
    save_switch(tmp_path / "s", switch())
    with pytest.raises(IdentityError, match="learn-switch"):
        load_switch(tmp_path / "s", identity("stranger"))
    with pytest.raises(IdentityError, match="use it on tuned"):
        load_switch(tmp_path / "s", identity("base"))


def test_a_damaged_switch_is_refused(tmp_path: Path):
    save_switch(tmp_path / "s", switch())
    rewrite_fields(tmp_path / "s", lambda fields: fields.update(to="nowhere"))
    with pytest.raises(ArtifactError, match="learn it again"):
        load_switch(tmp_path / "s")
