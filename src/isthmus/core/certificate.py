"""What is known about a carried artifact: where it comes from, how well it did, at what cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from isthmus.core.errors import ArtifactError, IdentityError
from isthmus.core.identity import ModelIdentity

_TOLERANCE = 1e-4
"""Share by which norms may differ: sums in another order round differently."""


@dataclass(frozen=True)
class CertifiedNumber:
    """One measured number.

    Attributes:
        value: None when it was undefined.
        low: Lower end of the 95 % interval, where there is one.
        high: Upper end.
        n: Prompts behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True)
class Passage:
    """One map on the way of a carried artifact.

    Attributes:
        source: Model that the map reads.
        target: Model that it leads to.
        source_sites: Where it reads.
        target_site: Where it leads.
        map_method: Which map.
        map_quality: Its held-out quality, and how many pairs are behind it.
        corpus: What it was fitted on: number of texts, their hash, how tokens were paired.
        seed: Seed of its fit.
    """

    source: ModelIdentity
    target: ModelIdentity
    source_sites: tuple[str, ...]
    target_site: str
    map_method: str
    map_quality: Mapping[str, float]
    corpus: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Passage":
        """Reads one field of `way` that `Certificate.to_json` wrote.

        Args:
            fields: Every field by name.

        Returns:
            The passage that was written.
        """
        models = {end: ModelIdentity.from_json(fields[end]) for end in ("source", "target")}
        sites = {"source_sites": tuple(fields["source_sites"])}
        return cls(**{**fields, **models, **sites})


def worst_quality(qualities: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Returns, of several maps, the quality of the one that predicts worst (held-out R²)."""
    return dict(min(qualities, key=lambda quality: quality["r2_held_out"]))


def corpus_of(way: Sequence[Passage]) -> dict[str, Any]:
    """Returns what the maps of a way were fitted on: one corpus, or that of each map."""
    each = [dict(passage.corpus) for passage in way]
    return each[0] if all(one == each[0] for one in each) else {"of_each_map": each}


@dataclass(frozen=True)
class Certificate:
    """The evidence that travels with what was carried.

    `behaviour` and `damage` are empty when it was carried but not measured: a certificate never
    says more than was done.

    Attributes:
        source: Model it was learned in; of an average of several, the first.
        target: Model it was carried to, the only one it may be used on.
        source_sites: Where it was read in the source.
        target_site: Where it belongs; several are separated by commas.
        map_method: Which map; several in the order of the way.
        map_quality: Held-out quality of the map, and how many pairs are behind it; of several
            maps, of the one that predicts worst.
        corpus: What the map was fitted on: number of texts, their hash, how tokens were paired;
            of several maps with different ones, `of_each_map` lists them in the order of the way.
        setting: Edit, positions and strength that validation chose.
        behaviour: Test-split numbers by name, the controls' and the native ones among them.
        damage: Test-split numbers on benign prompts by name.
        norms: Norm of every vector, and the root mean square norm of the target's own states there.
        seed: Seed of everything random; of a direction that was carried alone, the first map's.
        versions: Packages.
        commit: Code, where it is known.
        way: Every map between source and target: of a chain one after the other, of an average
            those of all sources.
    """

    source: ModelIdentity
    target: ModelIdentity
    source_sites: tuple[str, ...]
    target_site: str
    map_method: str
    map_quality: Mapping[str, float]
    corpus: Mapping[str, Any] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)
    behaviour: Mapping[str, CertifiedNumber] = field(default_factory=dict)
    damage: Mapping[str, CertifiedNumber] = field(default_factory=dict)
    norms: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    way: tuple[Passage, ...] = ()

    @property
    def is_measured(self) -> bool:
        """Whether the behaviour was measured in the target."""
        return bool(self.behaviour)

    def require_target(self, model: ModelIdentity) -> None:
        """Refuses a model that this certificate is not about.

        Args:
            model: Model that the artifact belongs to.

        Raises:
            IdentityError: If it is another one.
        """
        if not self.target.is_same_model(model):
            raise IdentityError(
                f"the certificate is about {self.target}, the artifact about {model}: carry it "
                "again rather than edit its files"
            )

    def require_vectors(self, norms: Mapping[str, Sequence[float]]) -> None:
        """Refuses vectors at other sites, or of other lengths, than this certificate is about.

        Args:
            norms: Norm of every vector by site as written, in the order of the sites.

        Raises:
            ArtifactError: If they are others.
        """
        about = self.target_site.split(", ")
        if list(norms) != about:
            raise ArtifactError(
                f"the artifact is at {', '.join(norms)}, its certificate is about "
                f"{self.target_site}: carry it again"
            )
        found = [norm for one in norms.values() for norm in one]
        said = self.norms.get("vectors", found)
        if len(said) != len(found) or not all(
            math.isclose(one, other, rel_tol=_TOLERANCE)
            for one, other in zip(said, found, strict=True)
        ):
            raise ArtifactError(
                f"the artifact's vectors have norms {found}, its certificate is about {said}: "
                "carry it again"
            )

    def of_other_vectors(self, norms: Mapping[str, Sequence[float]]) -> "Certificate":
        """Returns what still holds of vectors that were made from the certified ones.

        Args:
            norms: Norm of every new vector by site as written, in the order of the sites.

        Returns:
            A certificate of the same way about these sites and norms. Nothing counts as measured.
        """
        return replace(
            self,
            target_site=", ".join(norms),
            norms={"vectors": [norm for one in norms.values() for norm in one]},
            setting={},
            behaviour={},
            damage={},
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Certificate":
        """Reads what `to_json` wrote.

        Args:
            fields: Every field by name.

        Returns:
            The certificate that was written.

        Raises:
            ArtifactError: If a field is missing or unknown.
        """
        try:
            numbers = {
                group: {name: CertifiedNumber(**one) for name, one in fields[group].items()}
                for group in ("behaviour", "damage")
            }
            models = {end: ModelIdentity.from_json(fields[end]) for end in ("source", "target")}
            sites = {"source_sites": tuple(fields["source_sites"])}
            # Files of versions before chains have no way.
            way = {"way": tuple(Passage.from_json(one) for one in fields.get("way", ()))}
            return cls(**{**fields, **numbers, **models, **sites, **way})
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"not a certificate ({type(error).__name__}: {error})") from error


def continued(before: Certificate | None, last: Certificate) -> Certificate:
    """Returns the certificate of what was carried before and has gone through one more map.

    Args:
        before: What it had before; None of something that was learned where the last map took it.
        last: About the last map alone.

    Returns:
        About the whole way: it begins where the first map did, and its quality is that of the map
        that predicts worst.
    """
    if before is None:
        return last
    way = (*before.way, *last.way)
    return replace(
        last,
        source=before.source,
        source_sites=before.source_sites,
        map_method=f"{before.map_method}, {last.map_method}",
        map_quality=worst_quality([before.map_quality, last.map_quality]),
        corpus=corpus_of(way),
        seed=before.seed,
        way=way,
    )
