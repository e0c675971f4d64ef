"""Logistic probes: a classifier of states, and the direction it reads."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from isthmus.core.errors import FitError, ShapeError
from isthmus.directions.classes import checked_classes


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of states: the positive class lies where x · u is above the threshold.

    Attributes:
        unit_direction: u, float32, norm 1.
        threshold: Coordinate along u at which both classes are equally likely, in activation units.

    Raises:
        ShapeError: If `unit_direction` is not of norm 1.
    """

    unit_direction: Float[Tensor, " d_model"]
    threshold: float

    def __post_init__(self) -> None:
        norm = float(self.unit_direction.norm())
        if not abs(norm - 1) < 1e-4:
            raise ShapeError(
                f"a probe's direction has norm {norm:g}, expected 1: divide it by that"
            )

    def scores(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Returns how far each state lies on the positive side, x · u - threshold.

        Args:
            states: Activations of any float dtype and on any device; left unchanged.

        Returns:
            Distances in activation units, float32.
        """
        return states.float() @ self.unit_direction.to(states.device) - self.threshold

    def auroc(
        self,
        positive: Float[Tensor, "positive_prompt d_model"],
        negative: Float[Tensor, "negative_prompt d_model"],
    ) -> float:
        """Measures how well the scores rank both classes (area under the ROC curve).

        Args:
            positive: States of the positive class.
            negative: States of the negative class.

        Returns:
            The chance that a positive state scores above a negative one, from 0 to 1.
        """
        labels = [1] * len(positive) + [0] * len(negative)
        scores = torch.cat([self.scores(positive), self.scores(negative)])
        return float(roc_auc_score(labels, scores.cpu().numpy()))


def fit_probe(
    positive: Float[Tensor, "positive_prompt d_model"],
    negative: Float[Tensor, "negative_prompt d_model"],
) -> Probe:
    """Fits a logistic regression on standardised states and returns it in activation coordinates.

    With z = (x - m) / s and scores w · z + b, the direction is a = w / s and the threshold along
    a / |a| is (m · a - b) / |a|.

    Refuses empty classes (`DataError`), unequal widths (`ShapeError`) and states that are not
    finite (`NonFiniteError`).

    Args:
        positive: States of the positive class; left unchanged.
        negative: States of the negative class; left unchanged.

    Returns:
        A probe where the positive states lie.

    Raises:
        FitError: If the regression does not converge or finds no difference.
    """
    classes = checked_classes(positive[:, None], negative[:, None], pooled=False)
    states = torch.cat(classes)[:, 0].cpu()
    labels = [1] * len(positive) + [0] * len(negative)
    mean, deviation = states.mean(0), states.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    model = LogisticRegression(max_iter=1000)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model.fit(((states - mean) / scale).numpy(), labels)
    except ConvergenceWarning as error:
        raise FitError(
            f"the probe did not converge on {len(states)} states: give it more prompts"
        ) from error
    along = torch.from_numpy(model.coef_[0]).double() / scale
    norm = along.norm()
    if not bool(norm > 0):
        raise FitError(
            f"the probe found no difference in {len(states)} states: choose other prompts or sites"
        )
    threshold = float((mean @ along - float(model.intercept_[0])) / norm)
    return Probe((along / norm).to(positive.device, torch.float32), threshold)


def probe_direction(
    positive: Float[Tensor, "positive_prompt position d_model"],
    negative: Float[Tensor, "negative_prompt position d_model"],
    *,
    pooled: bool,
) -> Float[Tensor, "out_position d_model"]:
    """Returns the direction of a logistic probe per position, v = ((μ₊ - μ₋) · u) u.

    Refuses empty classes (`DataError`), unequal positions or widths (`ShapeError`) and states
    that are not finite (`NonFiniteError`); a regression must converge (`FitError`).

    Source: Alain and Bengio 2016, arXiv 1610.01644, for linear probes.

    Args:
        positive: States of the positive class; left unchanged.
        negative: States of the negative class, as many positions but any number of prompts.
        pooled: Whether all positions share one vector.

    Returns:
        Float64 vectors; their norm is the distance of the class means along them, in activation
        units.
    """
    classes = checked_classes(positive, negative, pooled=pooled)
    units = [
        fit_probe(classes.positive[:, position], classes.negative[:, position]).unit_direction
        for position in range(classes.positive.shape[1])
    ]
    unit = torch.stack(units).double()
    gap: Tensor = (classes.difference * unit).sum(-1, keepdim=True)
    return gap * unit
