"""What a manifest that was changed, or that does not fit its shards, is found by."""

import json
import tracemalloc

import pytest
from tests.unit.data.stores import PAIRS, fill

from isthmus.core.errors import ArtifactError
from isthmus.data.activation_store import ActivationStore
from isthmus.data.store_format import Manifest, Shard, ShardPlan, StoredText, read_manifest

LENGTHS = (3, 4, 1, 9, 0, 2, 2, 2, 5, 3, 1, 1)


def drop(m):
    del m["shards"][2]


def twice(m):
    m["shards"].insert(2, m["shards"][2])


def reverse(m):
    m["shards"].reverse()


def negative(m):
    m["shards"][0]["texts"][0][2] -= 1000
    m["shards"][0]["texts"][1][2] += 1000


def finished_in_words(m):
    m["is_finished"] = "no"


def narrower(m):
    m["sides"]["source"]["model"]["d_model"] = 2


def fewer_rows(m):
    m["shards"][0]["texts"][0][2] -= 1
    m["shards"][0]["n_rows"] -= 1


def moved_rows(m):
    m["shards"][0]["texts"][0][2] -= 1
    m["shards"][0]["texts"][1][2] += 1


def other_part(m):
    m["shards"][0]["texts"][0][1] = "held_out"


def other_site(m):
    m["sides"]["source"]["sites"][0] = "resid_post[1]"


def other_text(m):
    m["shards"][0]["texts"][0][0] = "0" * 64


SEEN_ON_OPENING = [drop, twice, reverse, negative, finished_in_words, narrower]
SEEN_IN_SHARDS = [fewer_rows, moved_rows, other_part, other_site]


def changed(folder, change, *, is_old):
    fill(folder, LENGTHS)
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    if is_old:
        del fields["sha256"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    return folder


@pytest.mark.parametrize("change", [*SEEN_ON_OPENING, *SEEN_IN_SHARDS, other_text])
def test_a_manifest_that_was_changed_is_refused(tmp_path, change):
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged .*make the store again"):
        ActivationStore.open(changed(tmp_path / "s", change, is_old=False))


@pytest.mark.parametrize("change", SEEN_ON_OPENING)
def test_of_a_manifest_without_a_hash_what_cannot_be_is_refused(tmp_path, change):
    with pytest.raises(ArtifactError, match="is damaged"):
        ActivationStore.open(changed(tmp_path / "s", change, is_old=True))


@pytest.mark.parametrize("change", SEEN_IN_SHARDS)
def test_of_a_manifest_without_a_hash_what_shards_do_not_hold_is_found(tmp_path, change):
    store = ActivationStore.open(changed(tmp_path / "s", change, is_old=True))
    first = store.manifest.shards[0].plan.name
    assert store.damages()[0] == f"{first} does not hold what the manifest says of it"
    with pytest.raises(ArtifactError, match=first):
        store.verify()


def test_an_older_manifest_and_one_with_other_white_space_are_read_and_gone_on_with(tmp_path):
    folder = changed(tmp_path / "s", lambda _: None, is_old=True)
    ActivationStore.open(folder).verify()
    store = fill(folder, (*LENGTHS, 4))
    assert len(store.texts) == 13
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4), encoding="utf-8")
    assert ActivationStore.open(folder).manifest == store.manifest
    store.verify()


def test_a_text_takes_some_two_hundred_bytes_of_memory_and_ninety_of_the_manifest(tmp_path):
    n_texts = 2000
    texts = tuple(StoredText(f"{i:064x}", "train", 1) for i in range(n_texts))
    shards = (Shard(ShardPlan(0, texts), "0" * 64),)
    Manifest(PAIRS, shards, is_finished=True, versions={}).write(tmp_path)
    assert (tmp_path / "manifest.json").stat().st_size / n_texts == pytest.approx(90, rel=0.1)
    del texts, shards
    tracemalloc.start()
    held = read_manifest(tmp_path)
    n_bytes, n_most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held.shards[0].plan.texts) == n_texts
    assert 150 < n_bytes / n_texts < 250
    assert n_most / n_texts < 700
