import json
from pathlib import Path

import pytest
import torch
from tests.manifests import rewrite_fields

from isthmus.core.artifacts import MANIFEST_NAME, read_artifact, read_fields, write_artifact
from isthmus.core.errors import ArtifactError


def written(path: Path) -> Path:
    write_artifact(path, "direction", {"layer": 3, "name": "π"}, {"v": torch.ones(2)})
    return path


def test_fields_that_were_edited_by_hand_are_refused_with_and_without_the_tensors(tmp_path):
    path = written(tmp_path / "d")
    rewrite_fields(path, lambda fields: fields.update(layer=4), keeps_hash=True)
    for read in (read_artifact, read_fields):
        with pytest.raises(ArtifactError, match="fields were changed by hand or damaged"):
            read(path)


def test_the_hash_of_fields_does_not_depend_on_their_order_or_layout(tmp_path):
    fields = {"sites": ("a", "b"), "by_number": {2: 1.5, 10: 0.1}, "none": None}
    write_artifact(tmp_path / "d", "direction", fields, {})
    manifest = json.loads((tmp_path / "d" / MANIFEST_NAME).read_text())
    turned = {**manifest, "fields": dict(reversed(manifest["fields"].items()))}
    (tmp_path / "d" / MANIFEST_NAME).write_text(json.dumps(turned, indent=7))
    assert read_fields(tmp_path / "d")["sites"] == ["a", "b"]


def test_artifacts_of_versions_that_kept_no_hash_of_fields_are_read(tmp_path):
    path = written(tmp_path / "d")
    rewrite_fields(path, lambda fields: fields.update(layer=4))
    assert read_fields(path)["layer"] == 4
