import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.unit.data.stores import PAIRS, SOURCE, TARGET, expected, fill, shard_of, text, texts_of
from tests.unit.maps.pairs import without_shape_checks

from isthmus.core.artifacts import sha256_of_file
from isthmus.core.errors import ArtifactError, ConfigError, DataError, NonFiniteError, OutputError
from isthmus.core.sites import Site
from isthmus.data.activation_store import ActivationStore
from isthmus.data.store_format import StoreSpec
from isthmus.data.store_writer import StoreWriter, plan_shards, write_shard

LENGTHS = (3, 4, 1, 9, 0, 2, 2, 2, 5, 3, 1, 1)


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of_file(path) for path in folder.iterdir()}


def test_every_row_comes_back_with_its_token_whatever_the_order(tmp_path):
    store = fill(tmp_path / "s", LENGTHS)
    assert (store.n_rows, len(store.texts), store.manifest.is_finished) == (33, 12, True)
    for role in ("source", "target"):
        chosen = torch.randperm(33, generator=torch.Generator().manual_seed(0))
        assert torch.equal(store.rows(chosen, role=role), expected(LENGTHS, role)[chosen])
        assert torch.equal(torch.cat([*store.batches(5, role=role)]), expected(LENGTHS, role))
    found = store.alignment([0, 2, 7, 8, 16])
    assert found["text"].tolist() == [0, 0, 2, 3, 3]
    assert found["token"].tolist() == [0, 2, 0, 0, 8]
    assert found["token_id"].tolist() == [0, 2, 2000, 3000, 3008]
    assert found["end"].tolist() == [1, 3, 1, 1, 9]
    alone = store.rows([4], [Site(2)])
    assert torch.equal(alone, expected(LENGTHS)[4:5, 3:])


def test_shards_hold_whole_texts_and_at_most_the_rows_that_were_asked_for(tmp_path):
    store = fill(tmp_path / "s", LENGTHS)
    plans = [shard.plan for shard in store.manifest.shards]
    assert [plan.n_rows for plan in plans] == [7, 1, 9, 6, 5 + 0, 5]
    assert all(plan.n_rows <= 7 or len(plan.texts) == 1 for plan in plans[:2] + plans[3:])
    assert [plan.first_text for plan in plans][1:] == [plan.stop_text for plan in plans][:-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_files_are_plain_safetensors_of_the_storage_type(tmp_path, dtype):
    store = fill(tmp_path / "s", LENGTHS, replace(PAIRS, storage_dtype=dtype))
    tensors = load_file(tmp_path / "s" / store.manifest.shards[0].plan.name)
    assert tensors["source.resid_post[2]"].dtype == getattr(torch, dtype)
    assert torch.equal(tensors["source.resid_post[2]"].float(), expected(LENGTHS)[:7, 3:])
    n_bytes = sum(t.numel() * t.itemsize for t in tensors.values())
    assert n_bytes == 7 * store.manifest.spec.bytes_per_row


@settings(deadline=None, max_examples=20)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=25).filter(any),
    stops=st.lists(st.integers(0, 4), max_size=4),
    cuts=st.lists(st.integers(0, 25), max_size=3),
)
def test_a_store_that_was_stopped_and_appended_to_holds_every_row_once(
    tmp_path_factory, lengths, stops, cuts
):
    folder = tmp_path_factory.mktemp("store") / "s"
    for cut in sorted(cuts):
        if any(lengths[:cut]):
            fill(folder, lengths[:cut])
    for n_shards in stops:
        fill(folder, lengths, n_shards=n_shards)
    store = fill(folder, lengths)
    for role in ("source", "target"):
        every = torch.cat([expected(lengths, role)[:0], *store.batches(role=role)])
        assert torch.equal(every, expected(lengths, role))
    assert [one.n_rows for one in store.texts] == lengths
    assert len(files_of(folder)) == len(store.manifest.shards) + 1


def test_shards_may_be_written_in_any_order_twice_and_by_anybody(tmp_path):
    whole = fill(tmp_path / "whole", LENGTHS)
    writer = StoreWriter(tmp_path / "s", PAIRS)
    every = [*plan_shards(texts_of(LENGTHS), (), PAIRS.rows_per_shard)]
    for planned in [every[3], every[0], every[5]]:
        shard = shard_of(writer.folder, PAIRS, planned)
        assert shard_of(writer.folder, PAIRS, planned) == shard
        writer.register(shard)
        writer.register(shard)
    with pytest.raises(DataError, match="lacks texts between"):
        writer.finish()
    store = fill(tmp_path / "s", LENGTHS)
    assert store.manifest == whole.manifest
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")


_KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from isthmus.data.activation_store import ActivationStore
from tests.unit.data.stores import fill
folder, n_kills, delay = Path(sys.argv[1]), 0, 0.001
while True:
    child = os.fork()
    if not child:
        fill(folder, [40] * 60)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] == 0:
        break
    n_kills, delay = n_kills + 1, delay + 0.0037
    if (folder / "manifest.json").exists():
        assert ActivationStore.open(folder).damages() == ()
print(n_kills)
"""


def test_a_capture_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path):
    folder, root = tmp_path / "s", Path(__file__).parents[3]
    # One process forks all that are killed: each would need seconds to import torch.
    words = [sys.executable, "-c", _KILLED, str(folder), str(root)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)  # noqa: S603
    assert int(done.stdout) >= 3
    store = ActivationStore.open(folder)
    assert store.manifest.is_finished
    assert torch.equal(store.rows(range(store.n_rows)), expected([40] * 60))
    assert len(files_of(folder)) == len(store.manifest.shards) + 1


def _stop_at(monkeypatch, name: str, call: int) -> None:
    """Lets a function of `os` fail as a kill would: nothing after it runs, not even cleaning up."""
    real, counted = getattr(os, name), [0]

    def stops(*words, **options):
        counted[0] += 1
        if counted[0] == call:
            raise KeyboardInterrupt
        return real(*words, **options)

    monkeypatch.setattr(os, name, stops)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)


@pytest.mark.parametrize("name", ["pwrite", "truncate", "fsync"])
@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_stop_within_any_step_of_writing_leaves_what_can_be_gone_on_with(
    tmp_path, monkeypatch, name, call
):
    with monkeypatch.context() as patched:
        _stop_at(patched, name, call)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "s", LENGTHS)
    held = ActivationStore.open(tmp_path / "s")
    assert held.damages() == ()
    assert not held.manifest.is_finished
    assert set(files_of(tmp_path / "s")) - {
        "manifest.json",
        *(s.plan.name for s in held.manifest.shards),
    }
    fill(tmp_path / "s", LENGTHS)
    whole = fill(tmp_path / "whole", LENGTHS)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")
    assert torch.equal(whole.rows(range(33)), expected(LENGTHS))


def test_a_damaged_shard_is_named_and_written_anew_when_it_is_removed(tmp_path):
    store = fill(tmp_path / "s", LENGTHS)
    path = tmp_path / "s" / store.manifest.shards[2].plan.name
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert store.damages() == (f"{path.name} does not have the recorded hash",)
    with pytest.raises(ArtifactError, match=path.name):
        store.verify()
    path.write_bytes(raw[:-1])
    with pytest.raises(ArtifactError, match=path.name):
        store.rows([8])
    path.unlink()
    assert "cannot be read" in store.damages()[0]
    again = fill(tmp_path / "s", LENGTHS)
    again.verify()
    assert again.manifest.shards == store.manifest.shards


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"storage_dtype": "bfloat16"}, "storage_dtype float32 and bfloat16"),
        ({"rows_per_shard": 8}, "rows_per_shard 7 and 8"),
        ({"pairing": "index"}, "pairing character_end and index"),
        ({"target": None, "pairing": None}, "target two@w2 and nothing"),
        ({"source": TARGET}, "source one@w1 and two@w2"),
        (
            {"source": replace(SOURCE, sites=(Site(0),))},
            r"sites resid_post\[0\], .* and resid_post\[0\]",
        ),
        ({"source": replace(SOURCE, computed_in="float16")}, "computed in float32 and float16"),
    ],
)
def test_rows_of_another_kind_are_refused_and_the_difference_is_named(tmp_path, change, words):
    fill(tmp_path / "s", LENGTHS)
    before = files_of(tmp_path / "s")
    with pytest.raises(OutputError, match=words):
        StoreWriter(tmp_path / "s", replace(PAIRS, **change))
    assert files_of(tmp_path / "s") == before


def test_other_texts_and_fewer_are_refused(tmp_path):
    fill(tmp_path / "s", LENGTHS)
    with pytest.raises(DataError, match="text 3 is not the one that the store holds"):
        fill(tmp_path / "s", (3, 4, 1, 8))
    with pytest.raises(DataError, match="only 5 were given"):
        fill(tmp_path / "s", LENGTHS[:5])


def test_a_place_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="not an isthmus store"):
        StoreWriter(tmp_path, PAIRS)
    with pytest.raises(ArtifactError, match="no store at"):
        ActivationStore.open(tmp_path)


def test_rows_that_are_missing_given_twice_or_beyond_the_type_write_nothing(tmp_path):
    spec = replace(PAIRS, target=None, pairing=None, storage_dtype="float16")
    [planned] = plan_shards([text(0, 2)], (), 7)
    rows = torch.ones(2, 3)
    cases = [
        (DataError, "are missing", [(0, Site(0), rows)]),
        (DataError, "expected 2, once", [(0, Site(0), rows)] * 2),
        (DataError, "expected 2, once", [(0, Site(0), rows[:1])]),
        (NonFiniteError, "beyond float16", [(0, Site(0), 1e5 * rows)]),
    ]
    for error, words, given_rows in cases:

        def put_all(put, given_rows=given_rows):
            for index, site, one in given_rows:
                put(index, "source", site, one)

        with pytest.raises(error, match=words):
            write_shard(tmp_path, spec, planned.plan, {}, put_all)
    assert not [*tmp_path.iterdir()]


def test_what_a_store_does_not_hold_is_refused(tmp_path):
    store = fill(tmp_path / "s", LENGTHS)
    with pytest.raises(DataError, match="it has rows 0 to 32"):
        store.rows([33])
    with pytest.raises(ConfigError, match="give both, or neither"):
        StoreSpec(SOURCE, TARGET)
    with (
        without_shape_checks(),
        pytest.raises(ConfigError, match="storage_dtype 'int8'"),
    ):
        StoreSpec(SOURCE, storage_dtype="int8")
    one = fill(tmp_path / "one", LENGTHS, replace(PAIRS, target=None, pairing=None))
    with pytest.raises(DataError, match="capture pairs with --target"):
        one.pairs()


@pytest.mark.parametrize("change", [{"format": 2}, {"kind": "x"}, {"shards": 3}, {"sides": {}}])
def test_a_manifest_that_is_damaged_or_newer_is_refused(tmp_path, change):
    fill(tmp_path / "s", LENGTHS)
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change), encoding="utf-8")
    with pytest.raises(ArtifactError):
        ActivationStore.open(tmp_path / "s")
