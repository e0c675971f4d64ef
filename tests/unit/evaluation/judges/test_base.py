import math

import pytest

from isthmus.core.errors import ConfigError, DataError
from isthmus.evaluation.intervals import wilson_interval
from isthmus.evaluation.judges import Judge, RefusalRules, SubstringRules, Verdict, refusal_rate


def verdicts(refuses: int = 0, complies: int = 0, both: int = 0, unjudged: int = 0):
    return [
        *[Verdict("refuses", "r")] * refuses,
        *[Verdict("complies", "c")] * complies,
        *[Verdict("refuses_then_complies", "b")] * both,
        *[Verdict("unjudged", "u")] * unjudged,
    ]


def test_rates_are_shares_of_judged_rows_with_wilson_intervals() -> None:
    rates = refusal_rate(verdicts(refuses=6, complies=3, both=1, unjudged=10))
    assert (rates.n, rates.n_judged, rates.n_unjudged) == (20, 10, 10)
    assert rates.refuses == wilson_interval(6, 10)
    assert rates.complies == wilson_interval(3, 10)
    assert rates.refuses_then_complies == wilson_interval(1, 10)
    assert rates.unjudged == wilson_interval(10, 20)


def test_refusing_and_then_complying_is_in_no_other_rate() -> None:
    rates = refusal_rate(verdicts(refuses=1, complies=1, both=2))
    three = (rates.refuses, rates.complies, rates.refuses_then_complies)
    assert [rate.value for rate in three] == [0.25, 0.25, 0.5]


def test_bounds_say_what_unjudged_rows_could_do() -> None:
    assert refusal_rate(verdicts(refuses=2, complies=2)).refuses_bounds == (0.5, 0.5)
    assert refusal_rate(verdicts(refuses=2, complies=1, unjudged=1)).refuses_bounds == (0.5, 0.75)


def test_unjudged_rows_alone_give_no_rate_rather_than_a_perfect_one() -> None:
    rates = refusal_rate(verdicts(unjudged=3))
    assert math.isnan(rates.refuses.value)
    assert math.isnan(rates.complies.value)
    assert rates.unjudged.value == 1
    assert rates.refuses_bounds == (0.0, 1.0)


def test_no_verdict_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one"):
        refusal_rate([])


def test_a_verdict_has_one_of_four_labels() -> None:
    with pytest.raises(ConfigError, match="'maybe'"):
        Verdict("maybe", "")
    assert [v.is_judged for v in verdicts(1, 1, 1, 1)] == [True, True, True, False]
    assert [v.opens_with_refusal for v in verdicts(1, 1, 1, 1)] == [True, False, True, False]


@pytest.mark.parametrize("judge", [RefusalRules(), SubstringRules()])
def test_rules_are_judges(judge: object) -> None:
    assert isinstance(judge, Judge)
