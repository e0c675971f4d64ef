"""A probe of a model: where it reads, what it decides, and how well it did on held-out prompts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from isthmus.core.certificate import Certificate, CertifiedNumber
from isthmus.core.errors import ArtifactError, NonFiniteError, ShapeError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site, parse_sites
from isthmus.directions.probe import Probe


@dataclass(frozen=True, eq=False)
class ModelProbe:
    """A probe with everything that decides where it may be used.

    It reads one state per prompt: of the sites side by side, of the selected tokens the mean. The
    score of a mean is the mean of the scores, also after an affine map, so that a probe decides in
    another model by the rule by which it was fitted in the first.

    Attributes:
        probe: Classifier of the states of all sites, concatenated in the order of `sites`.
        sites: Where it reads; each gives `model.d_model` coordinates.
        positions: Selector of the tokens that it reads: `last:1`, `trigger`, `prompt` …
        model: Model whose states it reads.
        held_out: What it did on prompts that it was not fitted on, by name: `auroc`, and with
            `open_on_positive` and `open_on_negative` the share of both classes above the threshold.
            Empty of a carried probe: where it is now, nothing was measured.
        provenance: JSON values: prompts, seeds, the map it came through.
        certificate: What is known about a carried probe; None of one that was learned here.

    Raises:
        SiteError: If there is no site or the model does not have one of them.
        ShapeError: If the probe is not as wide as the sites together.
        NonFiniteError: If the threshold is NaN or infinite.
        IdentityError: If the certificate is about another model.
        ArtifactError: If the certificate is about other sites.
    """

    probe: Probe
    sites: tuple[Site, ...]
    positions: str
    model: ModelIdentity
    held_out: Mapping[str, CertifiedNumber] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        parse_sites(self.sites, self.model.n_layers)
        given, expected = len(self.probe.unit_direction), len(self.sites) * self.model.d_model
        if given != expected:
            raise ShapeError(
                f"a probe of width {given} does not fit {len(self.sites)} site(s) of {self.model}, "
                f"which need {expected}: learn it there"
            )
        if not math.isfinite(self.probe.threshold):
            raise NonFiniteError(
                f"threshold {self.probe.threshold} is not finite: learn or carry the probe again"
            )
        if self.certificate is not None:
            self.certificate.require_target(self.model)
            if self.certificate.target_site != self.sites_as_written:
                raise ArtifactError(
                    f"the probe is at {self.sites_as_written}, its certificate is about "
                    f"{self.certificate.target_site}: carry the probe again"
                )
        object.__setattr__(self, "held_out", MappingProxyType(dict(self.held_out)))

    @property
    def sites_as_written(self) -> str:
        """Its sites, as a certificate and messages write them."""
        return ", ".join(map(str, self.sites))
