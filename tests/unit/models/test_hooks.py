import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import OverwritesItsInput, Shift, n_hooks, shift, tiny_model
from transformers import DynamicCache

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ShapeError, SiteError
from isthmus.core.sites import Site, Stream
from isthmus.models.hooks import capturing, editing, metering, run_until_captured
from isthmus.models.probing import find_layout

IDS = torch.tensor([[5, 9, 17, 33, 4], [8, 2, 90, 41, 7]])
REAL = torch.ones(2, 5, dtype=torch.bool)
LAST = torch.tensor([[False] * 4 + [True]] * 2)
NONE = torch.zeros(2, dtype=torch.bool)
STREAMS = list(Stream)
ONE = tiny_model("llama")


class Raises:
    d_model = 16

    def __init__(self, error):
        self.error = error

    def __call__(self, _activations):
        raise self.error


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2", "opt"])
def lm(request):
    return tiny_model(request.param, n_layers=3)


def forward(lm, ids=IDS, **kwargs):
    with torch.no_grad():
        return lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), **kwargs)


def place(site, mask=LAST, generated=NONE, edit=None):
    return PlacedEdit(site, edit or shift(), mask, generated)


def around(lm, site, edits):
    outside, inside = capturing(lm.layout, [site]), capturing(lm.layout, [site])
    with outside as before, editing(lm.layout, edits), inside as after:
        forward(lm)
    return before[site], after[site]


@pytest.mark.parametrize("stream", STREAMS)
def test_an_edit_changes_exactly_the_masked_positions_of_its_site(lm, stream):
    site = Site(1, stream)
    before, after = around(lm, site, [place(site)])
    expected = before + shift().vector
    assert torch.equal(after[:, -1], expected[:, -1])
    assert torch.equal(after[:, :-1], before[:, :-1])


def test_the_parts_of_a_block_add_up_to_its_output(lm):
    sites = [Site(1, stream) for stream in STREAMS]
    with capturing(lm.layout, sites) as found:
        forward(lm)
    pre, attn, mlp, post = (found[site] for site in sites)
    torch.testing.assert_close(pre + attn + mlp, post, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(mask=st.lists(st.booleans(), min_size=10, max_size=10))
def test_positions_before_the_first_edited_one_keep_their_bits(mask):
    lm = ONE
    chosen = torch.tensor(mask).reshape(2, 5)
    plain = forward(lm).logits
    with editing(lm.layout, [place(Site(0), chosen)]) as count:
        edited = forward(lm).logits
    assert count.total == int(chosen.sum())
    for row in range(2):
        untouched = chosen[row].long().cumsum(0) == 0
        assert torch.equal(edited[row][untouched], plain[row][untouched])
        assert torch.equal(edited[row], plain[row]) == (not bool(chosen[row].any()))


def test_edits_of_one_site_act_in_the_order_given(lm):
    def doubled(x):
        return x * 2

    class Double(Shift):
        __call__ = staticmethod(doubled)

    double = Double(torch.zeros(16))
    site = Site(1)
    both = torch.ones(2, 5, dtype=torch.bool)
    edits = [place(site, both), place(site, both, edit=double)]
    before, after = around(lm, site, edits)
    assert torch.equal(after, (before + shift().vector) * 2)
    with editing(lm.layout, edits) as count:
        forward(lm)
    assert count.by_site == {site: 10}


def test_an_edit_without_masked_positions_is_never_called(lm):
    silent = place(Site(1), torch.zeros_like(REAL), edit=Raises(KeyboardInterrupt))
    with editing(lm.layout, [silent]) as count:
        forward(lm)
    assert count.total == 0


def test_the_result_has_the_activations_dtype():
    lm = tiny_model("llama", dtype=torch.bfloat16)
    lm.model.to(torch.bfloat16)
    site = Site(0)
    with editing(lm.layout, [place(site)]), capturing(lm.layout, [site]) as found:
        forward(lm)
    assert found[site].dtype == torch.bfloat16


def test_with_a_cache_given_and_generated_positions_are_told_apart(lm):
    generated = torch.tensor([True, False])
    site = Site(1)
    whole = torch.cat([IDS, IDS[:, :2]], dim=1)
    with editing(lm.layout, [place(site, LAST, generated)]) as count:
        at_once = forward(lm, whole, use_cache=False).logits
        assert count.total == 2 + 2
        parts = [forward(lm, IDS, use_cache=True)]
        cache = parts[0].past_key_values
        parts += [step(lm, whole, column, cache) for column in (5, 6)]
    assert count.total == 2 + 2
    stepped = torch.cat([part.logits for part in parts], dim=1)
    torch.testing.assert_close(stepped, at_once, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(at_once, forward(lm, whole).logits, atol=1e-2)


def test_generated_positions_are_edited_in_the_rows_that_ask_for_it(lm):
    whole = torch.cat([IDS, IDS[:, :2]], dim=1)
    placed = place(Site(1), torch.zeros_like(REAL), torch.tensor([True, False]))
    plain = forward(lm, whole).logits
    with editing(lm.layout, [placed]) as count:
        edited = forward(lm, whole).logits
    assert count.total == 2
    assert torch.equal(edited[1], plain[1])
    assert torch.equal(edited[0, :5], plain[0, :5])
    assert not torch.allclose(edited[0, 5:], plain[0, 5:], atol=1e-2)


def step(lm, ids, column, cache):
    mask = torch.ones(len(ids), column + 1, dtype=torch.long)
    new = ids[:, column : column + 1]
    with torch.no_grad():
        return lm.model(input_ids=new, attention_mask=mask, past_key_values=cache)


def test_tokens_read_and_tokens_generated_are_counted_apart(lm):
    with metering(lm.layout) as meter:
        cache = forward(lm, IDS, use_cache=True).past_key_values
        step(lm, torch.cat([IDS, IDS[:, :1]], dim=1), 5, cache)
        run_until_captured(lm.layout, [Site(0)], IDS, REAL)
    forward(lm)
    assert (meter.n_read, meter.n_generated) == (2 * IDS.numel(), len(IDS))
    assert meter.n_tokens == 2 * IDS.numel() + len(IDS)
    assert not n_hooks(lm)


def test_what_another_thread_runs_is_not_counted(lm):
    with metering(lm.layout) as meter:
        other = threading.Thread(target=forward, args=(lm,))
        other.start()
        other.join()
    assert meter.n_tokens == 0


@pytest.mark.parametrize("stream", STREAMS)
def test_nothing_after_the_last_site_runs(lm, stream):
    def never(*_):
        raise AssertionError("ran")

    sites = [Site(0), Site(1, stream)]
    with capturing(lm.layout, sites) as expected:
        forward(lm)
    handles = [m.register_forward_pre_hook(never) for m in later_modules(lm)]
    try:
        found = run_until_captured(lm.layout, sites, IDS, REAL)
    finally:
        for handle in handles:
            handle.remove()
    assert all(torch.equal(found[site], expected[site]) for site in sites)


def later_modules(lm):
    return [lm.layout.blocks[2].module, lm.layout.final_norm, lm.layout.lm_head]


def test_captures_of_blocks_that_overwrite_their_inputs_are_copies():
    lm = tiny_model("llama")
    with capturing(lm.layout, [Site(0)]) as expected:
        forward(lm)
    lm.model.model.layers[1] = OverwritesItsInput(lm.model.model.layers[1])
    with capturing(find_layout(lm.model), [Site(0)]) as found:
        forward(lm)
    assert torch.equal(found[Site(0)], expected[Site(0)])


def bad_later_site(lm):
    with editing(lm.layout, [place(Site(0)), place(Site(7))]):
        pass


def bad_later_capture(lm):
    with capturing(lm.layout, [Site(0), Site(7)]):
        pass


def raising_body(lm):
    with editing(lm.layout, [place(Site(0))]), capturing(lm.layout, [Site(0)]):
        raise ZeroDivisionError


def interrupted_edit(lm):
    with editing(lm.layout, [place(Site(0), edit=Raises(KeyboardInterrupt))]):
        forward(lm)


def raising_edit(lm):
    with editing(lm.layout, [place(Site(0), edit=Raises(ZeroDivisionError))]):
        forward(lm)


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        (bad_later_site, SiteError),
        (bad_later_capture, SiteError),
        (raising_body, ZeroDivisionError),
        (interrupted_edit, KeyboardInterrupt),
        (raising_edit, ZeroDivisionError),
        (lambda lm: run_until_captured(lm.layout, [Site(0), Site(7)], IDS, REAL), SiteError),
    ],
)
def test_no_hook_survives_a_failure(lm, fails, error):
    plain = forward(lm).logits
    with pytest.raises(error):
        fails(lm)
    assert n_hooks(lm) == 0
    assert torch.equal(forward(lm).logits, plain)


def test_an_edit_of_another_width_is_refused_with_both_widths(lm):
    with (
        pytest.raises(ShapeError, match=r"width 8.*16"),
        editing(lm.layout, [place(Site(0), edit=shift(8))]),
    ):
        pass


def test_masks_of_another_batch_are_refused(lm):
    wrong = place(Site(0), LAST[:1], NONE[:1])
    with pytest.raises(ShapeError, match="2 rows"), editing(lm.layout, [wrong]):
        forward(lm)
    with pytest.raises(ShapeError, match="same batch"), editing(lm.layout, [place(Site(0)), wrong]):
        pass


def test_a_pass_that_does_not_cover_the_given_positions_is_refused(lm):
    with pytest.raises(ShapeError, match="3 positions"), editing(lm.layout, [place(Site(0))]):
        forward(lm, IDS[:, :3])


def test_an_edit_that_changes_the_shape_is_refused(lm):
    class Narrow(Shift):
        def __call__(self, activations):
            return activations[..., :1]

    with (
        pytest.raises(ShapeError, match="keeps the shape"),
        editing(lm.layout, [place(Site(0), edit=Narrow(torch.zeros(16)))]),
    ):
        forward(lm)


def test_capturing_nothing_is_refused(lm):
    with pytest.raises(SiteError, match="name at least one"), capturing(lm.layout, []):
        pass


def mamba_step(lm, ids, cache=None):
    with torch.no_grad():
        return lm.model(input_ids=ids, cache_params=cache, use_cache=True)


@pytest.mark.parametrize("has_own_cache", [True, False])
def test_a_recurrent_state_is_counted_from_its_first_token(has_own_cache):
    lm = tiny_model("mamba")
    given = IDS[:, :3]
    cache = DynamicCache(config=lm.model.config) if has_own_cache else None
    generated = torch.tensor([True, False])
    edit = place(Site(0), torch.tensor([[False, True, False]] * 2), generated)
    with editing(lm.layout, [edit]) as count, capturing(lm.layout, [Site(0)]) as captured:
        cache = mamba_step(lm, given, cache).cache_params
        mamba_step(lm, IDS[:, 3:4], cache)
        stepped = captured[Site(0)]
    whole = torch.tensor([[False, True, False, True], [False, True, False, False]])
    edits = [place(Site(0), whole)]
    with editing(lm.layout, edits), capturing(lm.layout, [Site(0)]) as captured:
        forward(lm, IDS[:, :4])
    torch.testing.assert_close(stepped[:, 0], captured[Site(0)][:, 3], rtol=1e-4, atol=1e-4)
    assert count.total == 3


def test_a_recurrent_state_that_was_begun_elsewhere_is_refused():
    lm = tiny_model("mamba")
    cache = mamba_step(lm, IDS[:, :3]).cache_params
    with (
        pytest.raises(ShapeError, match="run the whole text"),
        editing(lm.layout, [place(Site(0))]),
    ):
        mamba_step(lm, IDS[:, 3:4], cache)
