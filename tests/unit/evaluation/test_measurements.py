import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import ArtifactError, ConfigError, NonFiniteError
from isthmus.evaluation.measurements import (
    CONDITIONS,
    METRICS,
    Measurement,
    read_results,
    write_results,
)

FULL = Measurement(
    task="backdoor",
    source="organism:a",
    target="organism:b",
    source_site="resid_post[1]",
    target_site="resid_post[2]",
    map="ridge",
    condition="transferred",
    edit="add",
    positions="trigger",
    strength=1.0,
    split="test",
    metric="recovery",
    value=0.97,
    ci_low=0.95,
    ci_high=0.98,
    n=256,
    seed=0,
)
SMALL = Measurement(task="backdoor", condition="none", metric="seconds", value=2.5)


def test_a_line_has_the_promised_fields_in_the_promised_order(tmp_path):
    write_results(tmp_path / "results.jsonl", [FULL])
    line = (tmp_path / "results.jsonl").read_text(encoding="utf-8").rstrip("\n")
    assert ", ".join(json.loads(line)) == (
        "task, source, target, source_site, target_site, map, condition, edit, positions, "
        "strength, split, metric, value, ci_low, ci_high, n, seed"
    )


def test_two_numbers_are_told_apart_by_all_but_their_values():
    assert replace(FULL, value=0.9, ci_low=0.8, ci_high=1.0).key == FULL.key
    for change in ({"n": 255}, {"seed": 1}, {"map": None}, {"task": "other"}, {"strength": 2.0}):
        assert replace(FULL, **change).key != FULL.key


def test_what_does_not_apply_is_null(tmp_path):
    write_results(tmp_path / "results.jsonl", [SMALL])
    row = json.loads((tmp_path / "results.jsonl").read_text(encoding="utf-8"))
    assert {key for key, value in row.items() if value is not None} == {
        "task",
        "condition",
        "metric",
        "value",
    }


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "task": st.text(st.characters(codec="utf-8")),
                "condition": st.sampled_from(CONDITIONS),
                "metric": st.sampled_from(METRICS),
                "value": st.none() | st.floats(allow_nan=False, allow_infinity=False),
                "strength": st.none() | st.floats(-1000, 1000),
                "seed": st.none() | st.integers(0, 2**40),
            }
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read_back(tmp_path_factory, rows):
    measurements = [Measurement(**row) for row in rows]
    path = tmp_path_factory.mktemp("run") / "results.jsonl"
    write_results(path, measurements)
    assert read_results(path) == measurements


def test_an_undefined_number_is_null_and_never_nan(tmp_path):
    undefined = replace(FULL, value=math.nan, ci_low=math.nan, ci_high=math.nan)
    assert undefined.value is None
    write_results(tmp_path / "results.jsonl", [undefined])
    assert "NaN" not in (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    assert read_results(tmp_path / "results.jsonl") == [undefined]


def test_whole_numbers_in_a_file_are_numbers(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(asdict(FULL) | {"value": 1, "ci_high": 1}), encoding="utf-8")
    (read,) = read_results(path)
    assert isinstance(read.value, float)


@pytest.mark.parametrize("condition", ["", "Native", "rotated"])
def test_an_unknown_condition_is_refused_with_the_known_ones(condition):
    with pytest.raises(ConfigError, match="use one of none, clean, native"):
        replace(FULL, condition=condition)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="no metric 'correctness': use one of recovery"):
        replace(FULL, metric="correctness")


@pytest.mark.parametrize("field", ["strength", "value", "ci_low", "ci_high"])
def test_an_infinite_number_is_refused(field):
    with pytest.raises(NonFiniteError, match=f"{field} is inf"):
        replace(FULL, **{field: math.inf})


@pytest.mark.parametrize(("low", "high"), [(0.5, None), (None, 0.5), (0.6, 0.5)])
def test_an_interval_has_two_ends_in_order(low, high):
    with pytest.raises(ConfigError, match="an interval from"):
        replace(FULL, ci_low=low, ci_high=high)


@pytest.mark.parametrize("n", [0, -3])
def test_a_measurement_over_nothing_is_refused(n):
    with pytest.raises(ConfigError, match="expected at least 1"):
        replace(FULL, n=n)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"value": "0.97"}, "value: .*valid number, got '0.97'"),
        ({"n": 2.5}, "n: .*integer"),
        ({"n": True}, "n: .*integer"),
        ({"task": None}, "task: .*string"),
        ({"condition": "other"}, "no condition 'other'"),
        ({"value": math.inf}, "value is inf"),
        ({"ci_low": None}, "an interval from None"),
        ({"extra": 1}, "expected an object with task, source"),
    ],
)
def test_a_damaged_line_is_refused_with_its_number(tmp_path, change, found):
    path = tmp_path / "results.jsonl"
    lines = [json.dumps(asdict(FULL)), json.dumps(asdict(FULL) | change)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"results\.jsonl, line 2: .*{found}"):
        read_results(path)


@pytest.mark.parametrize("line", ["", "{", "[]", "null", "{}"])
def test_a_line_that_is_no_measurement_is_refused(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{line}\n{json.dumps(asdict(FULL))}\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="line 1"):
        read_results(path)


def test_a_missing_field_is_not_taken_as_null(tmp_path):
    row = asdict(FULL)
    del row["seed"]
    (tmp_path / "results.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ArtifactError, match="seed"):
        read_results(tmp_path / "results.jsonl")


def test_results_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="run the evaluation first"):
        read_results(tmp_path / "results.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="cannot read"):
        read_results(tmp_path / "binary")
