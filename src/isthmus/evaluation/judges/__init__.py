"""Judges of completions: rules, a language model behind an endpoint, a classifier."""

from isthmus.evaluation.judges.base import (
    LABELS,
    Judge,
    RefusalRates,
    Verdict,
    refusal_rate,
)
from isthmus.evaluation.judges.endpoint import EndpointJudge
from isthmus.evaluation.judges.guard import GuardJudge, load_guard_judge
from isthmus.evaluation.judges.rules import RefusalRules, SubstringRules

__all__ = [
    "LABELS",
    "EndpointJudge",
    "GuardJudge",
    "Judge",
    "RefusalRates",
    "RefusalRules",
    "SubstringRules",
    "Verdict",
    "load_guard_judge",
    "refusal_rate",
]
