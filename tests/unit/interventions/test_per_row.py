import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import DataError, NoEditError, ShapeError
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import EncodedText, pad_batch
from isthmus.interventions.addition import Addition
from isthmus.interventions.affine import AffineEdit
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.per_row import PerRow, merge_rows, place_rows
from isthmus.interventions.positions import parse_positions
from isthmus.interventions.row_edits import EachRow

D_MODEL = 6
SITES = (Site(0), Site(1, Stream.MLP_OUT), Site(1))
LENGTHS = (5, 8, 6, 8)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoded(n_tokens, trigger=(1, 3)):
    return EncodedText(
        "abcdefghij"[:n_tokens],
        tuple(range(n_tokens)),
        tuple(range(1, n_tokens + 1)),
        (False,) * n_tokens,
        n_tokens,
        trigger,
    )


TEXTS = [encoded(n) for n in LENGTHS]


def affine(seed, rank=2):
    return AffineEdit(
        gaussian(D_MODEL, rank, seed=seed),
        gaussian(rank, D_MODEL, seed=seed + 1),
        gaussian(D_MODEL, seed=seed + 2),
        gaussian(D_MODEL, seed=seed + 3),
        0.5 + seed,
    )


WIDE = (gaussian(D_MODEL, D_MODEL, seed=20), None, gaussian(D_MODEL), gaussian(D_MODEL, seed=1))


def full(seed):
    return AffineEdit(*WIDE, 0.25 + seed)


def build(kind, seed, site, positions):
    where = parse_positions(positions)
    n = 2 if positions in {"trigger", "last:2"} and seed % 2 else 1
    vectors = {site: gaussian(n, D_MODEL, seed=seed)}
    strength = 1.0 + seed
    made = {
        "add": lambda: Intervention.steering(vectors, where, strength),
        "add_keeping_norm": lambda: Intervention.steering(
            vectors, where, strength, keeps_norm=True
        ),
        "ablate": lambda: Intervention.ablation(vectors, where),
        "set": lambda: Intervention.set_coordinate(
            vectors, {site: gaussian(n, seed=seed)}, where, 0.7
        ),
        "replace": lambda: Intervention.replacement(vectors, where),
        "affine": lambda: Intervention.affine({site: affine(seed, 1 + seed % 3)}, where),
        "full": lambda: Intervention.affine({site: full(seed)}, where),
        "noise": lambda: Intervention.noise(vectors, where, seed),
    }
    return made[kind]()


KINDS = ("add", "add_keeping_norm", "ablate", "set", "replace", "affine", "full", "noise")
POSITIONS = ("trigger", "last:2", "prompt", "generated", "all")
ONES = st.tuples(
    st.sampled_from(KINDS),
    st.integers(0, 5),
    st.sampled_from(SITES),
    st.sampled_from(POSITIONS),
)


def passed(placed, states, *, steps=()):
    """What a model of independent positions would hold at every site: given, then each step."""
    found = []
    for number, chunk in enumerate([states, *steps]):
        for site in SITES:
            values = chunk
            for one in placed:
                if one.site == site:
                    mask = one.generated[:, None] if number else one.given
                    values = torch.where(mask[..., None], one.edit(values), values)
            found.append(values)
    return found


@settings(deadline=None, max_examples=60)
@given(
    asked=st.lists(st.none() | ONES, min_size=4, max_size=4),
    side=st.sampled_from(["left", "right"]),
)
def test_every_row_comes_out_as_it_does_alone_without_padding(asked, side):
    chosen = [None if one is None else build(*one) for one in asked]
    batch = pad_batch(TEXTS, 0, side)
    states, new = gaussian(4, 8, D_MODEL, seed=9), gaussian(4, 1, D_MODEL, seed=10)
    together = passed(place_rows(chosen, batch), states, steps=[new])
    for row, (one, text, offset) in enumerate(zip(chosen, TEXTS, batch.offsets, strict=True)):
        own = slice(offset, offset + len(text))
        placed = [] if one is None else one.place(pad_batch([text], 0, side))
        alone = passed(placed, states[row : row + 1, own], steps=[new[row : row + 1]])
        for number, (many, single) in enumerate(zip(together, alone, strict=True)):
            here = many[row : row + 1] if number >= len(SITES) else many[row : row + 1, own]
            torch.testing.assert_close(here, single, rtol=1e-5, atol=1e-5)
            if one is None:
                assert torch.equal(here, single)


def test_rows_of_one_kind_at_one_site_share_one_edit():
    chosen = [build("add", seed, SITES[0], "all") for seed in range(4)]
    assert len(place_rows(chosen, pad_batch(TEXTS, 0, "left"))) == 1
    chosen[1] = build("ablate", 1, SITES[0], "all")
    chosen[2] = build("set", 2, SITES[0], "all")
    chosen[3] = None
    first, second = place_rows(chosen, pad_batch(TEXTS, 0, "left"))
    assert first.generated.tolist() == [False, True, True, False]
    assert second.generated.tolist() == [True, False, False, False]


def test_one_edit_for_all_rows_stays_the_edit_it_was():
    same = Intervention.affine({SITES[0]: full(0)}, parse_positions("all"))
    (placed,) = place_rows([same, None, same, same], pad_batch(TEXTS, 0, "left"))
    assert placed.edit is same.edits[SITES[0]][0]
    assert placed.generated.tolist() == [True, False, True, True]


def test_one_full_map_at_several_strengths_is_computed_once():
    rows = [Intervention.affine({SITES[0]: full(i)}, parse_positions("all")) for i in range(4)]
    (placed,) = place_rows(rows, pad_batch(TEXTS, 0, "left"))
    states = gaussian(4, 8, D_MODEL)
    expected = torch.cat([full(i)(states[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(placed.edit(states), expected)


def test_edits_of_one_row_keep_their_order_whatever_other_rows_do():
    batch = pad_batch([TEXTS[0]], 0, "left")
    add, remove = (build(kind, 0, SITES[0], "all").place(batch)[0] for kind in ("add", "ablate"))
    states = gaussian(2, 5, D_MODEL)
    found = passed(merge_rows([[add, remove, add], [remove, add]]), states)[0]
    for row, order in enumerate([(add, remove, add), (remove, add)]):
        expected = states[row : row + 1]
        for one in order:
            expected = one.edit(expected)
        torch.testing.assert_close(found[row : row + 1], expected)


def test_texts_are_told_apart_by_index_even_where_they_are_alike():
    chosen = (build("add", 0, SITES[0], "all"), None, build("add", 4, SITES[0], "all"))
    batch = pad_batch([TEXTS[0]] * 2, 0, "left", indices=[2, 0])
    (placed,) = PerRow(chosen).place(batch)
    moved = placed.edit(torch.zeros(2, 5, D_MODEL))
    for row, index in enumerate(batch.indices):
        expected = chosen[index].edits[SITES[0]][0](torch.zeros(1, 5, D_MODEL))
        torch.testing.assert_close(moved[row : row + 1], expected)


def test_a_row_whose_intervention_edited_nothing_is_named():
    rows = PerRow((build("add", 0, SITES[0], "trigger"), None, build("add", 0, SITES[0], "all")))
    rows.require_edits([2, 0, 9])
    with pytest.raises(NoEditError, match=r"row 0 at trigger; row 2 at all"):
        rows.require_edits([0, 0, 0])
    with pytest.raises(DataError, match="3 interventions for 1 texts"):
        rows.require_edits([1])


def test_other_numbers_of_interventions_than_rows_are_refused():
    batch = pad_batch(TEXTS, 0, "left")
    with pytest.raises(DataError, match="2 interventions for 4 rows"):
        place_rows([None, None], batch)
    with pytest.raises(DataError, match="2 interventions, none for text 2"):
        PerRow((None, None)).place(batch)


def test_rows_that_do_not_fit_together_are_refused():
    short, long = (pad_batch([text], 0, "left") for text in TEXTS[:2])
    one = build("add", 0, SITES[0], "all")
    with pytest.raises(ShapeError, match="padded to one width"):
        merge_rows([one.place(short), one.place(long)])
    wide = Intervention({SITES[0]: (Addition(torch.ones(7)),)}, parse_positions("all"))
    with pytest.raises(ShapeError, match=r"widths \{0: 6, 2: 7\}"):
        place_rows([one, None, wide, None], pad_batch(TEXTS, 0, "left"))
    with pytest.raises(ShapeError, match="without one"):
        EachRow((None, None))


def test_parameters_are_copied_to_a_device_once_and_follow_the_type():
    (placed,) = place_rows(
        [build("add", seed, SITES[0], "all") for seed in range(4)], pad_batch(TEXTS, 0, "left")
    )
    states = gaussian(4, 8, D_MODEL)
    single = placed.edit(states)
    with torch.inference_mode():
        assert torch.equal(placed.edit(states), single)
    double = placed.edit(states.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
    assert placed.edit(states.bfloat16()).dtype == torch.bfloat16
    assert len(placed.edit._kept) == 2


def test_a_gate_takes_the_interventions_of_closed_texts_away_and_nothing_else():
    one = build("add", 0, SITES[0], "all")
    rows = PerRow((one, one, None))
    assert rows.only_where([True, False, True]).interventions == (one, None, None)
    with pytest.raises(DataError, match="a gate over 1 texts for 3"):
        rows.only_where([True])
