"""Manifests of artifacts with other fields than they were written with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isthmus.core.artifacts import MANIFEST_NAME


def rewrite_fields(
    folder: Path, change: Callable[[dict[str, Any]], object], *, keeps_hash: bool = False
) -> None:
    """Changes the fields of an artifact, by default as files were that kept no hash of them."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    change(manifest["fields"])
    if not keeps_hash:
        del manifest["fields_sha256"]
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
