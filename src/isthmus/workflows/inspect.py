"""`inspect`: what a model, an artifact or a run holds, as plain values."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isthmus.carrying import switch_files
from isthmus.core.artifacts import MANIFEST_NAME, TENSORS_NAME, read_artifact
from isthmus.core.errors import ArtifactError
from isthmus.data.activation_store import ActivationStore
from isthmus.data.store_format import KIND as KIND_OF_STORE
from isthmus.data.store_format import is_store
from isthmus.directions import files as direction_files
from isthmus.directions import probe_files
from isthmus.evaluation.measurements import Measurement, read_results
from isthmus.features import files as feature_files
from isthmus.maps import files as map_files
from isthmus.models.language_model import load_language_model


def inspect(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Returns what lies at a path: an artifact, a store, a run's folder, or a model.

    Args:
        path: Folder of an artifact, a store or a run, a model folder, a hub name or
            `organism:NAME`.
        verify: Whether every shard of a store is checked against its hash; the hashes of artifacts
            are checked in any case.

    Returns:
        Kind and contents.

    Raises:
        ArtifactError: If an artifact or a shard is damaged, or nothing is there.
        ModelError: If a model cannot be loaded.
    """
    folder = Path(path)
    if (folder / MANIFEST_NAME).is_file():
        return _artifact(folder)
    if is_store(folder):
        return _store(folder, verify=verify)
    if (folder / "results.jsonl").is_file():
        return _run(folder)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{path} is a file: expected the folder of an artifact, run or model")
    return _model(str(path))


def _artifact(folder: Path) -> dict[str, Any]:
    artifact = read_artifact(folder)
    if artifact.kind in _LOADERS:
        # Checks what only the whole can show, such as its certificate.
        _LOADERS[artifact.kind](folder)
    shapes = {name: list(tensor.shape) for name, tensor in artifact.tensors.items()}
    fields = {key: value for key, value in artifact.fields.items() if key not in _LONG}
    return {"kind": artifact.kind, **fields, "tensors": shapes}


def _store(folder: Path, *, verify: bool) -> dict[str, Any]:
    store = ActivationStore.open(folder)
    if verify:
        store.verify()
    return {"kind": KIND_OF_STORE, **store.summary(), "is_verified": verify}


_LOADERS: Mapping[str, Callable[[Path], object]] = {
    direction_files.KIND: direction_files.load_direction,
    direction_files.SUBSPACE_KIND: direction_files.load_subspace,
    probe_files.KIND: probe_files.load_probe,
    map_files.KIND: map_files.load_map,
    switch_files.KIND: switch_files.load_switch,
    feature_files.KIND: feature_files.load_features,
}
_LONG = {"tokenizer", "texts", "config"}


def _run(folder: Path) -> dict[str, Any]:
    measured = read_results(folder / "results.jsonl")
    if not measured:
        raise ArtifactError(f"{folder / 'results.jsonl'} holds no number: run it again")
    swaps = [m for m in measured if m.metric == "swap" and m.split == "test"]
    n_alike = Counter(_arm(m) for m in swaps)
    headline = {
        _arm(m) if n_alike[_arm(m)] == 1 else f"{_arm(m)} seed {m.seed}": m.value for m in swaps
    }
    # Whichever file of an artifact is there, the other one must be, too.
    found = [folder.glob(f"artifacts/**/{name}") for name in (MANIFEST_NAME, TENSORS_NAME)]
    artifacts = sorted({path.parent for paths in found for path in paths})
    for artifact in artifacts:
        _artifact(artifact)
    names = [str(path.relative_to(folder)) for path in artifacts]
    return {"kind": "run", "n": len(measured), "swap on test": headline, "artifacts": names}


def _arm(m: Measurement) -> str:
    return f"{m.target} {m.condition} {m.map or ''}".strip()


def _model(name: str) -> dict[str, Any]:
    lm = load_language_model(name)
    blocks = lm.layout.blocks
    return {
        "kind": "model",
        **lm.identity.to_json(),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "blocks": type(blocks[0].module).__name__,
        "writers": [writer.name for writer in blocks[0].writers],
        "writes exactly": lm.layout.writes_exactly,
        "sites": [f"{lm.sites('all')[0]} to {lm.sites('all')[-1]}"],
        "chat template": lm.tokenizer.chat_template is not None,
    }
