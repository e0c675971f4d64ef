import hashlib
import json
import os
import resource
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from isthmus.core.artifacts import (
    MANIFEST_NAME,
    TENSORS_NAME,
    SafetensorError,
    read_artifact,
    read_fields,
    read_json,
    require_free,
    sha256_of_file,
    write_artifact,
    write_json,
)
from isthmus.core.errors import ArtifactError, NonFiniteError, OutputError
from isthmus.core.places import atomic_folder, require_replaceable, write_text

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # A lone surrogate is no Unicode text and cannot be written as UTF-8.
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=8,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def filled(folder, content="old"):
    folder.mkdir()
    (folder / "file").write_text(content)
    return folder


def saved(path, **changes):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
    write_artifact(path, "direction", {"layer": 3, "name": "π"}, tensors | changes)
    return path


def edit_manifest(path, **changes):
    manifest = json.loads((path / MANIFEST_NAME).read_text())
    (path / MANIFEST_NAME).write_text(json.dumps(manifest | changes))


def test_a_hash_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"isthmus" * 1000)
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(b"isthmus" * 1000).hexdigest()


def test_a_folder_appears_whole_and_only_at_the_end(tmp_path):
    path = tmp_path / "deep" / "result"
    with atomic_folder(path) as folder:
        (folder / "file").write_text("new")
        assert not path.exists()
        assert folder.parent == path.parent
    assert (path / "file").read_text() == "new"
    assert names(path.parent) == ["result"]


@pytest.mark.parametrize("failure", [ValueError("no"), OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("replace", [False, True])
def test_a_body_that_raises_leaves_nothing_behind(tmp_path, failure, replace):
    def fail(folder):
        (folder / "half").write_text("half")
        raise failure

    expected = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected), atomic_folder(tmp_path / "x", replace=replace) as folder:
        fail(folder)
    assert names(tmp_path) == []


def test_a_taken_place_is_refused_before_the_work_is_done(tmp_path):
    taken = filled(tmp_path / "taken")
    with pytest.raises(OutputError, match="already exists"), atomic_folder(taken):
        pytest.fail("the body ran")
    assert (taken / "file").read_text() == "old"


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path):
    with atomic_folder(filled(tmp_path / "x"), replace=True) as folder:
        (folder / "other").write_text("new")
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["other"]


def test_an_old_folder_survives_a_body_that_raises(tmp_path):
    old = filled(tmp_path / "x")
    with pytest.raises(ZeroDivisionError), atomic_folder(old, replace=True):
        _ = 1 / 0
    assert (old / "file").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path):
    old = filled(tmp_path / "x")
    with (
        pytest.raises(OutputError, match="cannot write"),
        atomic_folder(old, replace=True) as folder,
    ):
        shutil.rmtree(folder)
    assert (old / "file").read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_is_never_replaced_by_a_folder(tmp_path, replace):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputError, match="x"), atomic_folder(tmp_path / "x", replace=replace):
        pytest.fail("the body ran")
    assert (tmp_path / "x").read_text() == "mine"


def test_of_two_writers_the_later_one_wins_where_replacing_is_allowed(tmp_path):
    path = tmp_path / "x"
    with atomic_folder(path, replace=True) as late:
        (late / "file").write_text("late")
        filled(path, "early")
    assert (path / "file").read_text() == "late"
    assert names(tmp_path) == ["x"]


def test_of_two_writers_the_earlier_one_wins_where_replacing_is_not_allowed(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(OutputError), atomic_folder(path):
        filled(path, "early")
    assert (path / "file").read_text() == "early"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["file/x", "file/x/y", "n" * 300])
def test_a_place_that_cannot_be_made_is_an_output_error(tmp_path, name):
    (tmp_path / "file").write_text("a file is no folder")
    for write in (
        lambda path: atomic_folder(path).__enter__(),
        lambda path: write_text(path, "x"),
        lambda path: write_json(path, 1),
        lambda path: write_artifact(path, "direction", {}, {}),
    ):
        with pytest.raises(OutputError, match="cannot write"):
            write(tmp_path / name)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_place_is_an_output_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError), atomic_folder(tmp_path / "x"):
        pytest.fail("the body ran")
    with pytest.raises(OutputError):
        write_text(tmp_path / "y", "x")


def test_writing_over_a_folder_leaves_it_and_no_litter(tmp_path):
    filled(tmp_path / "x")
    with pytest.raises(OutputError):
        write_text(tmp_path / "x", "text")
    assert names(tmp_path) == ["x"]


def test_text_is_written_as_it_is_and_replaces_the_old_text(tmp_path):
    write_text(tmp_path / "deep" / "x", "old")
    write_text(tmp_path / "deep" / "x", "naïve\n東京")
    assert (tmp_path / "deep" / "x").read_bytes() == "naïve\n東京".encode()
    assert names(tmp_path / "deep") == ["x"]


@given(value=JSON)
@settings(deadline=None, max_examples=50)
def test_json_comes_back_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_does_not_have_is_refused(tmp_path, number):
    with pytest.raises(NonFiniteError, match=r"x\.json"):
        write_json(tmp_path / "x.json", {"a": [number]})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_what_is_not_json_is_an_artifact_error(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_a_missing_json_file_or_a_folder_is_an_artifact_error(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ArtifactError):
            read_json(path)


def test_an_artifact_comes_back_bit_for_bit(tmp_path):
    read = read_artifact(saved(tmp_path / "d", half=torch.tensor([0.1]).half()), "direction")
    assert (read.kind, read.fields) == ("direction", {"layer": 3, "name": "π"})
    assert torch.equal(read.tensors["a"], torch.arange(6.0).view(2, 3))
    assert read_fields(tmp_path / "d") == read.fields
    assert read.tensors["b"].dtype == torch.int64
    assert torch.equal(read.tensors["half"], torch.tensor([0.1]).half())


def test_tensors_are_plain_safetensors_that_others_can_read(tmp_path):
    path = saved(tmp_path / "d", turned=torch.arange(6.0).view(2, 3).T)
    read = load_file(path / TENSORS_NAME)
    assert np.array_equal(read["turned"], np.arange(6.0).reshape(2, 3).T)
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()} == {0o644}


def test_an_artifact_without_tensors_is_one_file(tmp_path):
    write_artifact(tmp_path / "d", "certificate", {"a": 1}, {})
    assert names(tmp_path / "d") == [MANIFEST_NAME]
    assert read_artifact(tmp_path / "d").tensors == {}


def test_tensors_that_share_memory_are_stored_each_on_its_own(tmp_path):
    rows = torch.arange(6.0).view(2, 3)
    write_artifact(tmp_path / "d", "x", {}, {"all": rows, "again": rows, "first": rows[0]})
    read = read_artifact(tmp_path / "d").tensors
    assert torch.equal(read["all"], rows)
    assert torch.equal(read["again"], rows)
    assert torch.equal(read["first"], rows[0])


def test_an_artifact_of_the_same_kind_is_replaced(tmp_path):
    path = saved(tmp_path / "d")
    write_artifact(path, "direction", {"layer": 4}, {})
    assert read_artifact(path).fields == {"layer": 4}
    assert names(path) == [MANIFEST_NAME]


def test_a_place_that_holds_something_else_is_refused_and_left_alone(tmp_path):
    other = saved(tmp_path / "direction")
    folder, file = filled(tmp_path / "folder"), tmp_path / "file"
    file.write_text("mine")
    for path in (other, folder, file):
        with pytest.raises(OutputError, match="not an isthmus activation_map"):
            write_artifact(path, "activation_map", {}, {})
    assert read_artifact(other).kind == "direction"
    assert (folder / "file").read_text() == "old"
    assert file.read_text() == "mine"


def test_an_artifact_that_cannot_be_stored_leaves_the_old_one(tmp_path):
    path = saved(tmp_path / "d")
    with pytest.raises(NonFiniteError):
        write_artifact(path, "direction", {"score": float("nan")}, {})
    assert read_artifact(path).fields["layer"] == 3


def test_an_artifact_that_the_disk_does_not_hold_leaves_the_old_one(tmp_path):
    path = saved(tmp_path / "d")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            write_artifact(path, "direction", {}, {"large": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_artifact(path).fields["layer"] == 3
    assert names(tmp_path) == ["d"]


def test_another_kind_than_expected_is_refused_by_name(tmp_path):
    with pytest.raises(ArtifactError, match="is of kind direction, expected activation_map"):
        read_artifact(saved(tmp_path / "d"), "activation_map")


def test_a_newer_format_is_refused(tmp_path):
    edit_manifest(saved(tmp_path / "d"), format=2)
    with pytest.raises(ArtifactError, match="upgrade isthmus"):
        read_artifact(tmp_path / "d")


def test_fields_can_be_read_without_the_tensors(tmp_path):
    path = saved(tmp_path / "d")
    (path / TENSORS_NAME).unlink()
    assert read_fields(path, "direction")["layer"] == 3
    with pytest.raises(ArtifactError, match="expected organism"):
        read_fields(path, "organism")


def test_every_single_damaged_byte_of_the_tensors_is_noticed(tmp_path):
    tensors = saved(tmp_path / "d") / TENSORS_NAME
    whole = tensors.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        tensors.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="hash"):
            read_artifact(tmp_path / "d")


def test_a_file_with_the_recorded_hash_that_is_no_safetensors_is_refused(tmp_path):
    path = saved(tmp_path / "d")
    (path / TENSORS_NAME).write_bytes(b"\xff" * 64)
    edit_manifest(path, tensors_sha256=sha256_of_file(path / TENSORS_NAME))
    with pytest.raises(ArtifactError, match="cannot read"):
        read_artifact(path)


def test_a_missing_folder_or_file_is_an_artifact_error(tmp_path):
    path = saved(tmp_path / "d")
    (path / TENSORS_NAME).unlink()
    for missing in (path, tmp_path / "none", path / MANIFEST_NAME):
        with pytest.raises(ArtifactError):
            read_artifact(missing)


@pytest.mark.parametrize("manifest", ["[]", "{}", "3", '{"format": 1, "kind": "x", "fields": []}'])
def test_json_that_is_no_manifest_is_an_artifact_error(tmp_path, manifest):
    (tmp_path / MANIFEST_NAME).write_text(manifest)
    with pytest.raises(ArtifactError, match="not an isthmus artifact"):
        read_artifact(tmp_path)


def test_a_place_is_free_when_nothing_is_there_or_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "new", tmp_path / "new" / "deeper", tmp_path / "empty"):
        require_free(place)
        with atomic_folder(place) as folder:
            (folder / "made").touch()
        assert names(place) == ["made"]


def test_a_place_is_taken_by_all_but_an_artifact_of_the_same_kind(tmp_path):
    write_artifact(tmp_path / "a", "direction", {}, {})
    require_free(tmp_path / "a", "direction")
    with pytest.raises(OutputError, match="exists and is not an isthmus switch"):
        require_free(tmp_path / "a", "switch")
    for place in (tmp_path / "a", tmp_path / "a" / MANIFEST_NAME):
        with pytest.raises(OutputError, match="already exists: choose another --out"):
            require_free(place)
    with pytest.raises(OutputError, match="cannot write to"):
        require_free(tmp_path / "a" / MANIFEST_NAME / "below")


def test_the_folder_one_stands_in_and_one_behind_a_link_can_be_filled(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    for place, made in ((Path(), "here"), (tmp_path / "link", "there")):
        require_free(place)
        with atomic_folder(place) as folder:
            (folder / "made").touch()
        assert names(tmp_path / made) == ["made"]


def test_a_writer_that_fails_within_a_folder_is_an_error_about_the_place(tmp_path):
    with (
        pytest.raises(OutputError, match="disk full"),
        atomic_folder(tmp_path / "made", further=(SafetensorError,)),
    ):
        raise SafetensorError("disk full")
    assert names(tmp_path) == []


def test_results_replace_results_of_their_kind_and_nothing_else(tmp_path):
    for name in ("empty", "run", "other"):
        (tmp_path / name).mkdir()
    for name in ("run/results.jsonl", "other/thesis.txt", "file"):
        (tmp_path / name).touch()
    for free in ("new", "empty", "run"):
        require_replaceable(tmp_path / free, "results.jsonl")
    for taken in ("other", "file"):
        with pytest.raises(OutputError, match="is not a results folder: choose another --out"):
            require_replaceable(tmp_path / taken, "results.jsonl")
    with pytest.raises(OutputError, match=r"holds no cells\.json"):
        require_replaceable(tmp_path / "run", "cells.json")
