"""The benchmarks' values, arithmetic and files; what they time is not looked at."""

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from benchmarks import run
from benchmarks.capture_cases import bare_decoder, capture_cases
from benchmarks.import_cases import run_python
from benchmarks.map_cases import stream_growth
from benchmarks.networks import Scale, random_model, random_texts
from benchmarks.results import (
    BEGIN,
    END,
    CaseResult,
    check_case,
    conditions,
    failed_checks,
    measure_case,
    processor_model,
    write_results,
    write_table,
)
from benchmarks.steering_cases import POSITIONS, Setting, reference_edit
from benchmarks.timing import Case, Check, Pair, compare, interleaved_costs, summarise
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import binom

from isthmus.core.errors import ArtifactError, ConfigError
from isthmus.core.sites import Site
from isthmus.core.texts import pad_batch

TINY = Scale(
    name="tiny",
    n_layers=3,
    d_model=32,
    n_words=30,
    words_per_prompt=(3, 6),
    n_texts=4,
    n_new_tokens=6,
    batch_sizes=(2, 5),
    map_widths=((16, 24),),
    n_rows=200,
    n_repeats=3,
)


def ticking() -> Callable[[Callable[[], object]], float]:
    """A clock for which every run takes one second more than the one before."""
    seconds = count(1)

    def clock(variant):
        variant()
        return float(next(seconds))

    return clock


def a_case(**changes) -> Case:
    case = Case("Group", "case", {"a": int, "b": int}, (Pair("a", "b", 1.05),))
    return replace(case, **changes)


@pytest.fixture
def lm():
    return random_model(TINY, torch.Generator().manual_seed(0))


@pytest.fixture
def found():
    unequal = Check("one = two", lambda: 1.0)
    case = a_case(checks=(Check("one = one", lambda: 0.0), unequal))
    rate = a_case(name="rate", pairs=(Pair("a", "b", kind="rate", work=(8.0, 2.0)),))
    return [measure_case(one, 7, ticking()) for one in (case, rate)]


@pytest.mark.parametrize(
    "group", ["capture", "generation", "rows", "continuous", "scoring", "maps"]
)
def test_what_is_timed_computes_the_same_values_as_what_it_is_compared_with(group: str) -> None:
    checks = [check for case in run.cases(TINY, [group], 0) for check in check_case(case)]
    assert checks
    assert [check for check in checks if not check.is_equal] == []


@pytest.mark.parametrize("group", run.GROUPS)
def test_every_pair_names_variants_of_its_case(group: str) -> None:
    for case in run.cases(TINY, [group], 0):
        assert {name for pair in case.pairs for name in (pair.measured, pair.against)} <= set(
            case.variants
        )


def test_each_capture_is_compared_with_exactly_the_blocks_below_it(lm) -> None:
    texts = random_texts(lm, TINY, 4, torch.Generator().manual_seed(1), answers=True)
    batch = pad_batch(texts, lm.pad_id, "right")
    inputs = {"attention_mask": batch.is_real.long(), "use_cache": False}
    whole = lm.model(batch.token_ids, output_hidden_states=True, **inputs).hidden_states
    for layer in range(TINY.n_layers - 1):  # transformers norms the last one
        bare = bare_decoder(lm, layer + 1)(batch.token_ids, **inputs).last_hidden_state
        assert torch.equal(bare, whole[layer + 1])
        assert not torch.equal(bare, whole[layer])
    names = [case.name for case in capture_cases(TINY, torch.Generator().manual_seed(0))]
    assert names == [
        "early layer, resid_post[0]",
        "middle layer, resid_post[1]",
        "last layer, resid_post[2]",
    ]


def test_the_end_token_of_a_random_model_is_never_the_most_likely(lm) -> None:
    texts = random_texts(lm, TINY, 8, torch.Generator().manual_seed(1), answers=True)
    batch = pad_batch(texts, lm.pad_id, "right")
    logits = lm.model(batch.token_ids, attention_mask=batch.is_real.long()).logits
    (end,) = lm.eos_ids
    assert bool((logits[..., end] == 0).all())
    assert bool((logits.amax(-1) > 0).all())


@pytest.mark.parametrize(("positions", "n_rows"), list(zip(POSITIONS, (4, 4, 2), strict=True)))
def test_the_plain_hook_steers_the_positions_it_is_named_after(lm, positions, n_rows) -> None:
    texts = random_texts(lm, TINY, 4, torch.Generator().manual_seed(1), answers=False)
    setting = Setting(lm, texts, Site(1), torch.ones(lm.d_model), "left", 0)
    width = max(map(len, texts))
    change = reference_edit(setting, positions)(torch.zeros(4, width, lm.d_model))[..., 0].bool()
    assert int(change.any(1).sum()) == n_rows
    is_real = pad_batch(texts, lm.pad_id, "left").is_real
    assert int((change & is_real).sum()) == setting.n_edited(positions)
    assert positions == "all" or not bool((change & ~is_real).any())


def test_prompts_come_in_the_order_in_which_batches_hold_them(lm) -> None:
    texts = random_texts(lm, TINY, 6, torch.Generator().manual_seed(1), answers=False)
    assert [len(text) for text in texts] == sorted(map(len, texts), reverse=True)
    assert sum(text.trigger is not None for text in texts) == 3


def test_variants_take_turns_and_every_second_round_runs_backwards() -> None:
    order = []
    variants = {name: (lambda name=name: order.append(name)) for name in "abc"}
    costs = interleaved_costs(variants, 3, ticking())
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert costs == {"a": (4.0, 9.0, 10.0), "b": (5.0, 8.0, 11.0), "c": (6.0, 7.0, 12.0)}


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 repeats"):
        interleaved_costs({"a": int}, 0)


def test_ratios_are_taken_within_a_round_and_rates_are_work_per_second() -> None:
    costs = {"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 1.0]}
    ratio = compare(a_case(), Pair("a", "b"), costs).ratio
    assert (ratio.median, ratio.range) == (3.0, (2.0, 4.0))
    rate = compare(a_case(), Pair("a", "b", kind="rate", work=(6.0, 1.0)), costs).ratio
    assert (rate.median, rate.range) == (2.0, (1.5, 3.0))


@given(st.integers(1, 60))
@settings(deadline=None)
def test_the_interval_covers_the_median_as_tightly_as_95_percent_allow(
    n,
) -> None:
    low, high = summarise([float(i) for i in range(n)]).interval
    missed = 2 * binom.cdf(low, n, 0.5)  # ranks are the values themselves
    assert high == n - 1 - low
    assert n < 6 or missed <= 0.05 < 2 * binom.cdf(low + 1, n, 0.5)
    assert n >= 6 or low == 0


@pytest.mark.parametrize(
    ("costs", "limit", "verdict"),
    [((1.0, 1.01), 1.05, "within"), ((1.06, 1.2), 1.05, "above"), ((1.0, 1.2), 1.05, "open")],
)
def test_a_limit_is_kept_or_missed_only_by_the_whole_interval(costs, limit, verdict) -> None:
    pair = Pair("a", "b", limit)
    found = compare(a_case(), pair, {"a": costs * 3, "b": (1.0,) * 6})
    assert found.verdict == verdict
    assert compare(a_case(), pair, {"a": costs, "b": (1.0, 1.0)}).verdict == "open"
    assert replace(found, pair=Pair("a", "b")).verdict == ""


def test_a_variant_may_return_its_cost_instead_of_being_timed() -> None:
    sizes = {"a": count(6).__next__, "b": lambda: 4.0}
    case = a_case(variants=sizes, returns_cost=True, n_repeats=2)
    measured = measure_case(case, 9, ticking())
    assert measured.costs == {"a": (6.0, 7.0), "b": (4.0, 4.0)}  # none of them warmed up


def test_unequal_values_are_named(found) -> None:
    assert [check.what for check in failed_checks(found)] == ["one = two"]


def test_a_failing_command_is_an_error_and_not_a_fast_one() -> None:
    with pytest.raises(ConfigError, match="it broke"):
        run_python("raise ValueError('it broke')")


def test_results_name_the_machine_but_neither_host_nor_folder(found, tmp_path: Path) -> None:
    where = conditions({"scale": "tiny", "threads": 1, "clock": "wall", "seed": 0})
    write_results(tmp_path, "some", found, where)
    text = (tmp_path / "some.json").read_text(encoding="utf-8")
    written = json.loads(text)
    assert str(Path.cwd()) not in text
    assert platform.node() not in json.dumps(written["conditions"])
    assert written["conditions"]["machine"]["processor_model"] == processor_model()
    assert [ratio["n"] for ratio in written["ratios"]] == [7, 7]
    assert [check["is_equal"] for check in written["checks"]] == [True, False]
    assert len(written["raw"]["Group: rate"]["a"]) == 7


def test_the_figure_is_an_svg_with_a_label_for_every_ratio(found, tmp_path: Path) -> None:
    write_results(tmp_path, "some", found, {})
    root = ET.parse(tmp_path / "some.svg").getroot()  # noqa: S314 - our own file
    words = " ".join(element.text or "" for element in root.iter())
    assert root.tag.endswith("svg")
    assert "case: a / b" in words
    assert "rate: a / b" in words


def test_the_table_replaces_only_what_stands_between_the_marks(
    found: list[CaseResult], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n{BEGIN}\nold\n{END}\nAfter.\n", encoding="utf-8")
    where = conditions({"scale": "tiny", "threads": 1, "clock": "wall", "seed": 0})
    for _ in range(2):
        write_table(page, found, where)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"Before.\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nAfter.\n")
    assert "old" not in text
    assert text.count("| Group: ") == 2
    assert "1 of 2 value checks" in text


@pytest.mark.parametrize("text", ["nothing", f"{END}\n{BEGIN}", BEGIN])
def test_a_page_without_both_marks_is_left_as_it_is(found, tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    where = conditions({"scale": "tiny", "threads": 1, "clock": "wall", "seed": 0})
    with pytest.raises(ArtifactError, match="restore both lines"):
        write_table(page, found, where)
    assert page.read_text(encoding="utf-8") == text


def test_the_documentation_has_a_place_for_the_table() -> None:
    before, _, rest = run.PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert before
    assert END in rest


def test_all_cases_of_a_group_are_measured_in_order_and_kept_one_by_one() -> None:
    cases = list(run.cases(TINY, ["generation"], 0))
    kept: list[int] = []
    found = run.measure(
        iter(cases), 2, ticking(), Console(quiet=True), lambda so_far: kept.append(len(so_far))
    )
    assert kept == [1, 2]
    assert [one.case for one in found] == [
        "Generation: 6 new tokens, batch 2",
        "Generation: 6 new tokens, batch 5",
    ]
    assert not failed_checks(found)


@pytest.mark.slow
def test_a_stream_grows_a_process_by_at_least_its_moments() -> None:
    float64 = 8
    assert stream_growth(256, 512, 2) >= 256 * (256 + 512) * float64 / 1024


@pytest.mark.slow
def test_a_quick_run_writes_its_results_and_leaves_the_documentation_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = run.PAGE.read_text(encoding="utf-8")
    threads = ["--threads", str(torch.get_num_threads())]
    options = ["--quick", "--repeats", "1", "--only", "scoring", "--out", str(tmp_path), *threads]
    assert run.main(options) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"quick-cpu.json", "quick-cpu.svg"}
    assert "Scoring: 8 answers" in capsys.readouterr().out
    assert run.PAGE.read_text(encoding="utf-8") == page
