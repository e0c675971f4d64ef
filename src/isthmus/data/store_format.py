"""What a store of activations holds, as its manifest says it.

1. A store is a folder with `manifest.json` and shards: safetensors files of consecutive texts.
2. A shard counts once the manifest names it; the manifest is replaced as a whole.
3. Where shards begin follows from the texts' rows alone, so that whoever computes a shard, and
   however often, writes the same file.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from isthmus.core.artifacts import TensorShape, read_json
from isthmus.core.errors import ArtifactError, ConfigError
from isthmus.core.identity import ModelIdentity
from isthmus.core.options import require_word
from isthmus.core.places import write_text
from isthmus.core.sites import Site, parse_site
from isthmus.core.texts import EncodedText
from isthmus.data.parts import PARTS, Part

KIND = "activation_store"
FORMAT = 1
MANIFEST_NAME = "manifest.json"

StorageDtype = Literal["float32", "bfloat16", "float16"]
Role = Literal["source", "target"]

ROLES: tuple[Role, Role] = ("source", "target")

ROWS_PER_SHARD = 16384
"""Rows of a shard when nobody says otherwise."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NOTHING = ("", "nothing")
_OWN_HASH = "sha256"
_ALIGNMENT = ("token", "token_id", "end")


@dataclass(frozen=True)
class StoredSide:
    """What one model gives to a store.

    Attributes:
        model: Which model was read.
        sites: Where it was read, in this order.
        computed_in: Type that it computed in, such as `bfloat16`.
    """

    model: ModelIdentity
    sites: tuple[Site, ...]
    computed_in: str = "float32"

    @property
    def width(self) -> int:
        """Width of a row, all sites side by side."""
        return len(self.sites) * self.model.d_model

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "model": self.model.to_json(),
            "sites": [str(site) for site in self.sites],
            "widths": [self.model.d_model] * len(self.sites),
            "computed_in": self.computed_in,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "StoredSide":
        """Reads what `to_json` wrote."""
        model = ModelIdentity.from_json(fields["model"])
        sites = tuple(parse_site(site, model.n_layers) for site in fields["sites"])
        if fields["widths"] != [model.d_model] * len(sites):
            raise ValueError(f"widths {fields['widths']} of {len(sites)} sites of {model}")
        return cls(model, sites, fields["computed_in"])


@dataclass(frozen=True)
class StoreSpec:
    """What every row of a store is, and how it is kept.

    Attributes:
        source: The model that was read, or the source of a pair.
        target: The target, in a store of pairs.
        pairing: How tokens of the two were paired.
        storage_dtype: Type of the activations in the files.
        rows_per_shard: Most rows of a shard, unless one text alone has more.

    Raises:
        ConfigError: If a value cannot be, or there is a target without pairing.
    """

    source: StoredSide
    target: StoredSide | None = None
    pairing: str | None = None
    storage_dtype: StorageDtype = "float32"
    rows_per_shard: int = ROWS_PER_SHARD

    def __post_init__(self) -> None:
        require_word("storage_dtype", self.storage_dtype, get_args(StorageDtype))
        if self.rows_per_shard < 1:
            raise ConfigError(f"rows_per_shard is {self.rows_per_shard}, expected at least 1")
        if (self.target is None) != (self.pairing is None):
            raise ConfigError(
                f"pairing {self.pairing!r} with target {self.target}: give both, or neither"
            )

    @property
    def sides(self) -> dict[Role, StoredSide]:
        """The models by their role."""
        both: dict[Role, StoredSide] = {"source": self.source}
        return both if self.target is None else {**both, "target": self.target}

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations in the files."""
        return _DTYPES[self.storage_dtype]

    @property
    def bytes_per_row(self) -> int:
        """Bytes that a row takes: activations, and the integers that say which token it is."""
        alignment = 8 + 4 * len(_ALIGNMENT) * len(self.sides)
        return self.dtype.itemsize * sum(side.width for side in self.sides.values()) + alignment

    def with_models_of(self, other: "StoreSpec") -> "StoreSpec":
        """Returns the same sites and files with the models and pairing of another specification."""
        source = replace(other.source, sites=self.source.sites)
        target = other.target
        if target is not None and self.target is not None:
            target = replace(target, sites=self.target.sites)
        return replace(self, source=source, target=target, pairing=other.pairing)

    def shapes(self, n_rows: int) -> dict[str, TensorShape]:
        """Returns type and shape of every tensor of a shard with so many rows.

        `ROLE.SITE` holds activations. For every row `text` is its text, counted over the whole
        store, and `ROLE.token`, `ROLE.token_id` and `ROLE.end` say which of that model's tokens it
        is, the token's id and the character that it ends at.
        """
        found: dict[str, TensorShape] = {"text": (torch.int64, (n_rows,))}
        for role, side in self.sides.items():
            for site in side.sites:
                found[f"{role}.{site}"] = (self.dtype, (n_rows, side.model.d_model))
            for name in _ALIGNMENT:
                found[f"{role}.{name}"] = (torch.int32, (n_rows,))
        return found

    def differences_to(self, other: "StoreSpec") -> tuple[str, ...]:
        """Returns in words in what another specification differs; empty if in nothing."""
        ours, theirs = _facts(self), _facts(other)
        settings = [
            f"{role} {one}"
            for role in self.sides.keys() & other.sides.keys()
            for one in self.sides[role].model.other_settings(other.sides[role].model)
        ]
        return (
            *settings,
            *(
                f"{name} {ours.get(name, _NOTHING)[1]} and {theirs.get(name, _NOTHING)[1]}"
                for name in {**ours, **theirs}
                if ours.get(name, _NOTHING)[0] != theirs.get(name, _NOTHING)[0]
            ),
        )


def _facts(spec: StoreSpec) -> dict[str, tuple[str, str]]:
    """Returns by name what is compared, and how it is said."""
    found: dict[str, tuple[str, str]] = {}
    for role, side in spec.sides.items():
        model = side.model
        # Names do not count: a model may be loaded from another place.
        found[role] = (model.weights_sha256 + model.tokenizer_sha256, str(model))
        sites = ", ".join(map(str, side.sites))
        found[f"{role} sites"] = (sites, sites)
        found[f"{role} computed in"] = (side.computed_in, side.computed_in)
    for name in ("pairing", "storage_dtype", "rows_per_shard"):
        value = str(getattr(spec, name))
        found[name] = (value, value)
    return found


@dataclass(frozen=True, slots=True)
class StoredText:
    """A text of a store.

    Attributes:
        sha256: Hash of the text, see `text_sha256`.
        part: Whether maps are fitted on it, choose by it, or are measured on it.
        n_rows: How many rows it has; of a pair it may have none.
    """

    sha256: str
    part: Part
    n_rows: int


@dataclass(frozen=True)
class ShardPlan:
    """Which texts a shard holds: known before a model has read one of them.

    Attributes:
        first_text: Its first text, counted over the whole store.
        texts: Its texts.
    """

    first_text: int
    texts: tuple[StoredText, ...]

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"shard-{self.first_text:09d}.safetensors"

    @property
    def stop_text(self) -> int:
        """One past its last text."""
        return self.first_text + len(self.texts)

    @property
    def n_rows(self) -> int:
        """Rows of all its texts."""
        return sum(text.n_rows for text in self.texts)


@dataclass(frozen=True)
class Shard:
    """A shard that has been written.

    Attributes:
        plan: What it holds.
        sha256: Hash of its file.
    """

    plan: ShardPlan
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "file": self.plan.name,
            "sha256": self.sha256,
            "n_rows": self.plan.n_rows,
            "first_text": self.plan.first_text,
            "texts": [[text.sha256, text.part, text.n_rows] for text in self.plan.texts],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Shard":
        """Reads what `to_json` wrote."""
        texts = tuple(
            StoredText(str(sha256), PARTS[PARTS.index(part)], _count(n_rows))
            for sha256, part, n_rows in fields["texts"]
        )
        if not texts:
            raise ValueError(f"{fields['file']} holds no text")
        shard = cls(ShardPlan(_count(fields["first_text"]), texts), str(fields["sha256"]))
        if (shard.plan.name, shard.plan.n_rows) != (fields["file"], fields["n_rows"]):
            raise ValueError(f"{fields['file']} does not hold the texts that it names")
        return shard


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} where a number of texts or rows is expected")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} where true or false is expected")
    return value


def text_sha256(*texts: EncodedText) -> str:
    """Returns the hash of a text as its models see it: of the rendered texts, a NUL between."""
    return hashlib.sha256("\0".join(text.text for text in texts).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a store's `manifest.json` says.

    Attributes:
        spec: What every row is.
        shards: Shards in the order of their texts.
        is_finished: Whether every text was read.
        versions: Versions of the packages that the store was begun with.
    """

    spec: StoreSpec
    shards: tuple[Shard, ...]
    is_finished: bool
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        """Replaces the manifest of a store; refuses a place that cannot be written to."""
        fields = {
            "kind": KIND,
            "format": FORMAT,
            "is_finished": self.is_finished,
            "sides": {role: side.to_json() for role, side in self.spec.sides.items()},
            "pairing": self.spec.pairing,
            "storage_dtype": self.spec.storage_dtype,
            "rows_per_shard": self.spec.rows_per_shard,
            "versions": self.versions,
        }
        content = _content(fields, (shard.to_json() for shard in self.shards))
        own = json.dumps(hashlib.sha256(content.encode()).hexdigest())
        write_text(folder / MANIFEST_NAME, f'{{\n{content},\n"{_OWN_HASH}": {own}\n}}\n')

    def require_consistent(self) -> None:
        """Refuses shards out of order, and a finished store that lacks texts (`ValueError`)."""
        stop = 0
        for shard in self.shards:
            first = shard.plan.first_text
            if first < stop or (self.is_finished and first > stop):
                raise ValueError(f"{shard.plan.name} follows text {stop - 1}")
            stop = shard.plan.stop_text


def _content(fields: dict[str, Any], shards: Iterable[Any]) -> str:
    """Returns what a manifest's hash is taken of, whatever white space is in the file."""
    # One line a field and one a shard: an indent would give every number a line of its own.
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
    each = ",\n".join(f"  {json.dumps(shard)}" for shard in shards)
    return ",\n".join([*lines, f'"shards": [\n{each}\n]'])


def _require_own_hash(fields: dict[str, Any]) -> None:
    """Refuses a manifest that is not as it was written; older ones have no hash."""
    if _OWN_HASH not in fields:
        return
    others = {key: value for key, value in fields.items() if key not in {"shards", _OWN_HASH}}
    content = _content(others, fields["shards"])
    if hashlib.sha256(content.encode()).hexdigest() != fields[_OWN_HASH]:
        raise ValueError("it does not have the hash that it was written with")


def is_store(folder: Path) -> bool:
    """Says whether a folder has a manifest that names itself a store's."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        return False
    fields = read_json(path)
    return isinstance(fields, dict) and fields.get("kind") == KIND


def read_manifest(folder: Path) -> Manifest:
    """Reads what a store says of itself; shards are not looked at.

    Args:
        folder: The store.

    Returns:
        What was written.

    Raises:
        ArtifactError: If there is no store, it is newer than this version, or it is damaged.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise ArtifactError(f"no store at {folder}: expected a folder with {MANIFEST_NAME}")
    fields = read_json(path)
    if not isinstance(fields, dict) or fields.get("kind") != KIND:
        raise ArtifactError(f"{path} is not the manifest of an isthmus {KIND}")
    if fields.get("format") != FORMAT:
        raise ArtifactError(
            f"{folder} has format {fields.get('format')}, this version reads {FORMAT}: "
            "upgrade isthmus"
        )
    try:
        _require_own_hash(fields)
        sides = {role: StoredSide.from_json(side) for role, side in fields["sides"].items()}
        spec = StoreSpec(
            sides["source"],
            sides.get("target"),
            fields["pairing"],
            fields["storage_dtype"],
            _count(fields["rows_per_shard"]),
        )
        shards = tuple(Shard.from_json(one) for one in fields["shards"])
        manifest = Manifest(spec, shards, _flag(fields["is_finished"]), dict(fields["versions"]))
        manifest.require_consistent()
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r}): make the store again") from error
    return manifest
