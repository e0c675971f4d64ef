from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from tests.unit.evaluation.small_reproduction import crossing, full_reproduction, one

from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.paper import PAPER_FIGURES
from isthmus.evaluation.paper_matching import PairKinds, best_match, found_for
from isthmus.evaluation.paper_rows import CROSSING_EDITS
from isthmus.evaluation.report import interval
from isthmus.evaluation.reproduction import ReportedPart, TableRow, table_rows
from isthmus.workflows.config import EditKind

EVERY = [m for part in full_reproduction().values() for m in part]


def numbers(
    figure: str, measurements: Sequence[Measurement] = EVERY, kinds: PairKinds | None = None
) -> dict[str, dict[str, float | None]]:
    """Values by title of every pair that stands beside a figure."""
    chosen = next(one for one in PAPER_FIGURES if one.number == figure)
    return {
        pair.name: {title: m.value if m else None for title, m in pair.numbers.items()}
        for pair in found_for(chosen, measurements, kinds)
    }


def row(figure: str, rows: Sequence[TableRow]) -> TableRow:
    return next(one for one in rows if one.figure.number == figure)


def reported() -> list[ReportedPart]:
    return [ReportedPart(name, name, rows) for name, rows in full_reproduction().items()]


def test_no_row_of_the_table_lacks_a_number_that_a_full_reproduction_measures():
    for figure in PAPER_FIGURES:
        (pair,) = found_for(figure, EVERY)
        assert [title for title, m in pair.numbers.items() if m is None] == [], figure.number


def test_native_and_carried_directions_stand_there_whatever_edit_the_task_recommends():
    found = numbers("T3")["llama-code → qwen2-code"]
    assert (found["native"], found["carried"]) == (0.9, 0.8)
    assert (found["vulnerable, untouched"], found["vulnerable, carried"]) == (1.0, 0.2)


def test_the_edits_of_a_crossing_are_those_that_a_configuration_can_name():
    assert set(get_args(EditKind)) == set(CROSSING_EDITS)


def test_a_study_that_shares_the_task_does_not_stand_for_its_crossing():
    found = numbers("T8")["llama-assistant → llama-large-assistant"]
    assert found["native"] == 0.9
    assert found["random direction, strongest draw"] == 0.3


def test_a_number_that_is_undefined_was_measured_and_says_so():
    without = [replace(m, value=None, ci_low=None, ci_high=None) for m in EVERY]
    for figure in PAPER_FIGURES:
        (pair,) = found_for(figure, without)
        assert {m.value for m in pair.numbers.values() if m} == {None}, figure.number
        assert not any("{" in title for title in pair.numbers)
    shown = found_for(PAPER_FIGURES[0], without)[0].numbers["carried"]
    assert interval(shown) == "undefined"


def test_the_strongest_control_is_named():
    assert (
        numbers("T1")["llama-backdoor → llama-large-backdoor"]["strongest control (mean ablation)"]
        == 0.6
    )
    ladder = numbers("T6")["llama-corrupted → qwen2-corrupted"]
    assert ladder["prompt tokens only, strongest control (shuffled pairs)"] == 0.45
    assert numbers("T5")["llama-backdoor → gemma2-backdoor"]["strongest control (mean ablation)"]


def test_a_scale_or_a_switch_stands_there_by_validation_not_by_its_test_value():
    found = numbers("T12")["llama-backdoor → qwen2-backdoor"]
    assert found["carried, scale 3 (chosen on validation)"] == 0.7
    switch = numbers("T10, Fig. 16")["llama → llama-backdoor"]
    chosen = "switch chosen on validation (trained trigger rank 0, 128 numbers)"
    assert switch[chosen] == 0.97
    assert switch["whole states, best of all blocks (direct patch after block 1)"] == 0.98
    assert switch["low-rank change of all weights (lora rank 16, 176,256 numbers)"] == 1.0


def test_every_layer_has_a_line_of_its_own():
    found = numbers("T14, Table 3; App. B")["llama-backdoor"]
    steered = [value for title, value in found.items() if title.startswith("behaviour left")]
    assert steered == [0.0, 0.3, 0.6]
    assert found["the same under noise, most of any (scale 4, resid_post[0])"] == 0.2


def test_the_title_of_what_was_not_found_holds_no_gap():
    (pair,) = numbers("T1", [m for m in EVERY if m.condition == "native"]).values()
    assert pair["strongest control"] is None


def test_other_models_stand_in_the_rows_of_their_kind_and_pairs_with_one_target_stay_apart():
    one_target = [*crossing("backdoor", ("a/A", "T"), 0.2), *crossing("backdoor", ("B", "T"), 0.9)]
    kinds: PairKinds = {("a/A", "T"): "same tokenizer", ("B", "T"): "other tokenizer"}
    shown = {
        figure: {
            pair: found["carried"] for pair, found in numbers(figure, one_target, kinds).items()
        }
        for figure in ("T1", "Fig. 3", "T4")
    }
    assert shown == {"T1": {}, "Fig. 3": {"A → T": 0.2}, "T4": {"B → T": 0.9}}
    assert list(numbers("T5", one_target, kinds)) == ["A → T", "B → T"]


def test_single_models_stand_in_rows_of_single_models():
    model = {"source": "a/B", "target": "a/B", "task": "layer_sweep", "edit": "act_add"}
    place = {**model, "positions": "trigger", "metric": "behaviour_rate", "target_site": "x"}
    swept = [one(0.5, condition="native", **place)]
    found = numbers("T14, Table 3; App. B", swept, {("A", "a/B"): "same tokenizer"})
    assert found["B"]["behaviour left, steered at x"] == 0.5


def test_a_row_says_of_what_models_it_speaks():
    ours = row("T1", table_rows(reported(), is_quick=False))
    assert "0.9 to 5 million parameters" in ours.compares
    theirs = row("T1", table_rows(reported(), is_quick=False, kinds={}))
    assert "million" not in theirs.compares
    assert "configuration" in theirs.compares
    assert theirs.absent == "no configuration has such a pair (small to large) for backdoor"


def test_a_row_without_a_number_says_why():
    few = [
        ReportedPart("backdoor", "", crossing("backdoor", ("organism:llama-backdoor", "x"))),
        ReportedPart("code", "", problem="no bandit"),
    ]
    quick = table_rows(few, is_quick=True)
    assert "--quick" in row("T1", quick).absent
    assert row("T3", quick).absent == "not measured: the part code is not available, see there"
    assert row("T7", quick).absent == "not measured: the part refusal was not asked for"
    assert row("T1", table_rows(few, is_quick=False)).absent == "not measured"
    # A pair of this kind was measured, but not what the row asks for.
    other = [ReportedPart("refusal", "", [one(0.5, source="A", target="T", metric="recovery")])]
    asked = table_rows(other, is_quick=False, kinds={("A", "T"): "same tokenizer"})
    assert row("T7", asked).absent == "not measured"


def test_the_papers_figures_are_each_of_the_model_that_stands_before_them():
    figure = next(one for one in PAPER_FIGURES if one.number == "T9")
    qwen, llama = figure.printed.split("; ")
    assert qwen == "Qwen-2.5-1.5B: MMLU .605 to .101, false triggers 15 to 58 %"
    assert llama == "Llama-3.2-3B: MMLU .373 to .004, false triggers 4 to 45 %"


def test_the_best_of_several_measurements_stands_beside_the_papers_figure():
    every = [one(0.5), one(0.7), one(0.9, condition="native")]
    wanted = {"task": "backdoor", "condition": "transferred"}
    found = best_match(every, wanted)
    assert found is not None
    assert found.value == 0.7
    assert best_match(every, {"task": "style"}) is None


def test_beside_the_papers_figure_stands_the_map_that_validation_chose():
    every = [
        one(0.8, map="ridge"),
        one(0.9, map="autoencoder"),
        one(0.7, map="ridge", split="validation"),
        one(0.6, map="autoencoder", split="validation"),
    ]
    wanted = {"task": "backdoor", "condition": "transferred", "split": "test"}
    values = [
        (best_match(every, {**wanted, **more}) or one(0.0)).value
        for more in ({}, {"map": "autoencoder"}, {"map": "ridge", "take": "lowest"})
    ]
    assert values == [0.8, 0.9, 0.8]
    assert best_match(every, {**wanted, "split": "train"}) is None
