from dataclasses import replace

import pytest
import torch
from tests.unit.data.stores import PAIRS, expected, fill

from isthmus.core.errors import FitError, ShapeError
from isthmus.core.sites import Site
from isthmus.data.parts import PARTS, part_of_text
from isthmus.maps import AutoencoderSettings, PairedRows, in_memory, moments_of, train_autoencoder
from isthmus.maps import rows as rows_module

LENGTHS = (3, 4, 1, 9, 0, 2, 2, 2, 5, 3, 1, 1) * 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("store") / "s", LENGTHS, replace(PAIRS, rows_per_shard=20))


def rows_of(part: str) -> PairedRows:
    lengths = torch.tensor(LENGTHS)
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), lengths)
    kept = torch.tensor([part_of_text(int(i)) == part for i in owner])
    counts = tuple(n for i, n in enumerate(LENGTHS) if part_of_text(i) == part)
    return PairedRows(expected(LENGTHS)[kept], expected(LENGTHS, "target")[kept], counts)


@pytest.mark.parametrize("part", PARTS)
def test_pairs_of_a_part_are_the_rows_of_its_texts(store, part):
    pairs, rows = store.pairs(part), rows_of(part)
    assert (pairs.n_rows, pairs.d_source, pairs.d_target) == (rows.n_rows, 6, 5)
    assert pairs.n_per_text == rows.n_per_text
    kept = in_memory(pairs, "a map")
    assert torch.equal(kept.source, rows.source)
    assert torch.equal(kept.target, rows.target)
    cut = in_memory(pairs.columns(2, 5).columns(1, 3), "a map")
    assert torch.equal(cut.source, rows.source[:, 3:5])
    with pytest.raises(ShapeError, match="there are 6"):
        pairs.columns(4, 7)


def test_sites_are_chosen_and_ordered_by_the_reader(store):
    pairs = in_memory(store.pairs(None, [Site(2), Site(0)], [Site(1)]), "a map")
    assert torch.equal(pairs.source, expected(LENGTHS).roll(3, 1))


def test_moments_of_a_store_are_those_of_its_rows(store):
    found, wanted = moments_of(store.pairs("train")), rows_of("train").moments
    assert found.n == wanted.n
    torch.testing.assert_close(found.source_scatter, wanted.source_scatter)
    torch.testing.assert_close(found.cross_scatter, wanted.cross_scatter)


@pytest.mark.parametrize("most_shuffled", [2**26, 11 * 30])
def test_a_shuffled_pass_has_every_pair_once_and_keeps_pairs_together(store, most_shuffled):
    pairs = replace(store.pairs(), most_shuffled=most_shuffled)
    seen = [*pairs.shuffled(8, torch.Generator().manual_seed(0))]
    source, target = (torch.cat(side) for side in zip(*seen, strict=True))
    assert {len(x) for x, _ in seen[:-1]} <= {8, pairs.n_rows % 8}
    assert not torch.equal(source, expected(LENGTHS))
    both = torch.cat([source, target], 1)
    wanted = torch.cat([expected(LENGTHS), expected(LENGTHS, "target")], 1)
    assert sorted(both.tolist()) == sorted(wanted.tolist())


def test_a_bounded_shuffle_never_asks_for_more_rows_than_it_may_hold(store):
    asked: list[int] = []
    pairs = store.pairs()

    def read(indices, role):
        asked.append(len(indices))
        return pairs.read(indices, role)

    bounded = replace(pairs, read=read, most_shuffled=11 * 30)
    for _ in bounded.shuffled(8, torch.Generator()):
        pass
    assert max(asked) == 24
    assert sum(asked) == 2 * pairs.n_rows


@pytest.mark.parametrize("settings", [AutoencoderSettings(), AutoencoderSettings.well_trained(150)])
def test_training_from_a_store_gives_the_map_of_training_in_memory(store, settings):
    settings = replace(settings, batch_size=16)
    rows = {part: rows_of(part) for part in PARTS}

    def trained(pairs, selection):
        return train_autoencoder(
            pairs, settings, torch.Generator().manual_seed(3), selection=selection
        )

    first = trained(store.pairs("train"), store.pairs("selection"))
    second = trained(rows["train"], rows["selection"])
    assert torch.equal(first.encoder_weight, second.encoder_weight)
    assert torch.equal(first.decoder_weight, second.decoder_weight)


def test_pairs_that_do_not_fit_into_memory_are_refused_with_what_to_do(store, monkeypatch):
    monkeypatch.setattr(rows_module, "MOST_IN_MEMORY", 100)
    with pytest.raises(FitError, match=r"a kernel map needs its pairs in memory.*such as ridge"):
        in_memory(store.pairs(), "a kernel map")
