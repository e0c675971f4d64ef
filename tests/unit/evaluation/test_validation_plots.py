import re

from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.validation_plots import replacement_bars


def measured(condition: str, metric: str, value: float | None, used: str | None = None):
    ends = {} if value is None else {"ci_low": value - 0.05, "ci_high": value + 0.05}
    return Measurement(
        task="t", condition=condition, metric=metric, value=value, map=used, n=9, seed=0, **ends
    )


ROWS = [
    measured("none", "benign_accuracy", 0.95),
    measured("transferred", "benign_accuracy", 0.6, "ridge"),
    measured("transferred", "kl", 0.71, "ridge"),
    measured("native", "kl", 0.06, "ridge"),
    measured("mean_ablation", "kl", 9.3),
    measured("shuffled_map", "kl", None, "ridge"),
]


def test_every_arm_has_a_bar_with_a_name_and_a_number():
    svg = replacement_bars(ROWS, "bars", "Replaced")
    text = re.sub(r"<[^>]+>", " ", svg[svg.index("</desc>") :])
    for said in (
        "Mapped · ridge",
        "Shuffled pairs",
        "Self-map",
        "Mean ablation",
        "No edit",
        "0.71",
        "9.30",
        "0.60",
    ):
        assert said in text
    assert "undefined" in text


def test_without_a_metric_that_it_shows_there_is_no_figure():
    assert replacement_bars([measured("none", "swap", 0.5)], "bars", "Replaced") is None
