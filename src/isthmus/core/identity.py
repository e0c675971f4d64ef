"""Which model a direction, a map or a certificate belongs to."""

from dataclasses import asdict, dataclass
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
    """

    name: str
    weights_sha256: str
    tokenizer_sha256: str
    d_model: int
    n_layers: int

    @override
    def __str__(self) -> str:
        return f"{self.name}@{self.weights_sha256[:8]}"

    def is_same_model(self, other: "ModelIdentity") -> bool:
        """Says whether weights and tokenizer are the same, wherever they were loaded from."""
        return (self.weights_sha256, self.tokenizer_sha256) == (
            other.weights_sha256,
            other.tokenizer_sha256,
        )

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


def require_same_model(what: str, made_on: ModelIdentity, used_on: ModelIdentity, fix: str) -> None:
    """Refuses to use something on another model than the one it was made on.

    Args:
        what: What is being used, for the message: "direction", "map".
        made_on: Model it belongs to.
        used_on: Model it is about to be used on.
        fix: What the user should do instead.

    Raises:
        IdentityError: If weights or tokenizer differ.
    """
    if not made_on.is_same_model(used_on):
        raise IdentityError(f"{what} belongs to {made_on}, not to {used_on}: {fix}")
