"""Which model a direction, a map or a certificate belongs to."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from typing_extensions import override

from isthmus.core.errors import ArtifactError, IdentityError


@dataclass(frozen=True)
class ModelIdentity:
    """A model as artifacts remember it.

    Attributes:
        name: Hub name, folder or `organism:NAME` it was loaded from; for people, not compared.
        weights_sha256: Hash over every parameter's name, shape and values.
        tokenizer_sha256: Hash over the tokenizer's vocabulary, rules and chat template.
        d_model: Width of the residual stream.
        n_layers: Number of decoder blocks.
        settings: What of its configuration decides what the weights compute, such as the base of
            rotary positions, as JSON values. Files of versions that did not keep it have none, and
            other versions of transformers other names: only what both know is compared.
    """

    name: str
    weights_sha256: str
    tokenizer_sha256: str
    d_model: int
    n_layers: int
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @override
    def __str__(self) -> str:
        return f"{self.name}@{self.weights_sha256[:8]}"

    def is_same_model(self, other: "ModelIdentity") -> bool:
        """Says whether both compute and read the same, wherever they were loaded from."""
        mine, theirs = ((one.weights_sha256, one.tokenizer_sha256) for one in (self, other))
        return mine == theirs and not self.other_settings(other)

    def other_settings(self, other: "ModelIdentity") -> tuple[str, ...]:
        """Returns the settings that both know and that differ, as text."""
        return tuple(_differences(self.settings, other.settings))

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelIdentity":
        """Reads what `to_json` wrote.

        Args:
            fields: Every field by name.

        Returns:
            The identity that was written.

        Raises:
            ArtifactError: If a field is missing or unknown.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise ArtifactError(f"not a model identity: {fields!r} ({error})") from error


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Yields what both know and that differs; of values with names of their own, name by name."""
    for name in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[name], theirs[name]
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            yield from (f"{name}.{one}" for one in _differences(mine, other))
        elif mine != other:
            yield f"{name} {mine!r} and {other!r}"


def require_same_model(what: str, made_on: ModelIdentity, used_on: ModelIdentity, fix: str) -> None:
    """Refuses to use something on another model than the one it was made on.

    Args:
        what: What is being used, for the message: "direction", "map".
        made_on: Model it belongs to.
        used_on: Model it is about to be used on.
        fix: What the user should do instead.

    Raises:
        IdentityError: If weights, tokenizer or configuration differ.
    """
    if made_on.is_same_model(used_on):
        return
    if made_on.weights_sha256 == used_on.weights_sha256 and (
        differing := made_on.other_settings(used_on)
    ):
        raise IdentityError(
            f"{what} belongs to {made_on}; {used_on.name} has the same weights and another "
            f"configuration ({'; '.join(differing)}), with which they compute something else: "
            f"restore its config.json, or {fix}"
        )
    if made_on.weights_sha256 == used_on.weights_sha256:
        raise IdentityError(
            f"{what} belongs to {made_on} with tokenizer {made_on.tokenizer_sha256[:8]}; "
            f"{used_on.name} has the same weights and tokenizer {used_on.tokenizer_sha256[:8]}: "
            "put the first one's tokenizer and chat template beside them"
        )
    if (made_on.name, made_on.d_model) == (used_on.name, used_on.d_model):
        raise IdentityError(
            f"{what} belongs to {made_on}, not to {used_on}: the name is the same and the weights "
            "are not. If only the type differs, load the model in the dtype in which the "
            f"{what} was made (--dtype); else its files have changed, and {fix}"
        )
    raise IdentityError(f"{what} belongs to {made_on}, not to {used_on}: {fix}")
