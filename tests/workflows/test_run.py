import json
import re
import shutil
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.workflows.small import brief_config, names_in, save_tiny, small_config

from isthmus.core.errors import DataError, OutputError, SiteError
from isthmus.core.progress import SilentProgress
from isthmus.directions.files import load_direction
from isthmus.evaluation.measurements import CONDITIONS, Measurement, read_results
from isthmus.maps.files import load_map
from isthmus.models.organisms import cache_folder
from isthmus.workflows.config import read_config
from isthmus.workflows.inspect import inspect
from isthmus.workflows.run import RunResult, run

CONTRACT = [
    "task",
    "source",
    "target",
    "source_site",
    "target_site",
    "map",
    "condition",
    "edit",
    "positions",
    "strength",
    "split",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "n",
    "seed",
]

CONTROLS = ("random", "noise", "shuffled_map", "identity_map")


@dataclass
class Notes(SilentProgress):
    """Keeps what a run says."""

    said: list[str]

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(small_config(), out=tmp_path_factory.mktemp("run") / "results")


def on_test(result: RunResult, condition: str, metric: str) -> list[Measurement]:
    wanted = (condition, metric, "test")
    return [m for m in result.measurements if (m.condition, m.metric, m.split) == wanted]


def value(result: RunResult, condition: str, metric: str) -> float:
    found = max(on_test(result, condition, metric), key=lambda m: m.value or 0.0)
    assert found.value is not None
    return found.value


def test_a_run_leaves_one_complete_folder_and_nothing_beside_it(result: RunResult):
    assert {path.name for path in result.folder.iterdir()} == {
        "config.yaml",
        "results.jsonl",
        "completions.json",
        "provenance.json",
        "artifacts",
        "report.html",
    }
    assert [path.name for path in result.folder.parent.iterdir()] == ["results"]


def test_every_line_of_the_results_has_the_fields_of_the_contract_in_order(result: RunResult):
    lines = (result.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(list(json.loads(line)) == CONTRACT for line in lines)
    assert read_results(result.folder / "results.jsonl") == list(result.measurements)


def test_every_condition_is_measured_on_the_test_split_with_n_and_seed(result: RunResult):
    found = [m for m in result.measurements if m.split == "test"]
    assert {m.condition for m in found} == set(CONDITIONS)
    assert all(m.n and m.seed is not None for m in found)
    assert len(on_test(result, "random", "swap")) == 2


@pytest.mark.parametrize(
    "metric",
    [
        "recovery",
        "recovery_induction",
        "swap",
        "behaviour_rate",
        "answer_accuracy",
        "benign_kl",
        "benign_accuracy",
        "false_trigger_rate",
        "edited_positions",
        "map_r2_held_out",
        "map_fvu_held_out",
        "map_r2_median_coordinate",
    ],
)
def test_the_transferred_direction_has_every_metric(result: RunResult, metric: str):
    assert on_test(result, "transferred", metric)


def test_headline_numbers_have_an_interval_around_them(result: RunResult):
    for metric in ("recovery", "swap", "behaviour_rate", "benign_kl"):
        for m in on_test(result, "transferred", metric):
            assert None not in (m.value, m.ci_low, m.ci_high)
            assert m.ci_low <= m.value <= m.ci_high


def untimed(result: RunResult) -> list[Measurement]:
    return [m for m in result.measurements if not m.metric.startswith("seconds")]


def test_another_intervention_through_the_same_map_costs_a_small_part_of_a_native_one(
    result: RunResult,
):
    native = value(result, "native", "target_tokens")
    assert 0 < value(result, "transferred", "target_tokens_next") <= 0.1 * native
    assert value(result, "transferred", "target_tokens") > value(
        result, "transferred", "target_tokens_next"
    )
    assert value(result, "transferred", "seconds_next") < value(result, "native", "seconds")


def test_the_report_says_what_the_target_was_asked_for(result: RunResult):
    native = value(result, "native", "target_tokens")
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert f"The target was run on {native:,.0f} tokens to find the native intervention" in page


def test_the_untouched_target_shows_the_behaviour_and_its_clean_twin_does_not(result: RunResult):
    assert value(result, "none", "behaviour_rate") >= 0.95
    assert value(result, "clean", "behaviour_rate") <= 0.1


def test_what_was_carried_does_what_ignorant_edits_of_its_norm_cannot(result: RunResult):
    transferred = value(result, "transferred", "swap")
    best_control = max(value(result, condition, "swap") for condition in CONTROLS)
    assert transferred > 2 * best_control
    assert transferred >= value(result, "native", "swap") - 0.1
    assert value(result, "transferred", "behaviour_rate") <= 0.2


def test_what_a_run_chose_stays_within_the_damage_budget_on_validation(result: RunResult):
    chosen = on_test(result, "transferred", "behaviour_rate")[0]
    damage = [
        m.value
        for m in result.measurements
        if (m.split, m.metric, m.map) == ("validation", "benign_kl", chosen.map)
        and (m.target_site, m.strength) == (chosen.target_site, chosen.strength)
        and m.positions == chosen.positions
    ]
    assert damage
    assert min(damage) <= small_config().max_benign_kl


def test_artifacts_of_a_run_load_again_and_know_their_models(result: RunResult):
    artifacts = result.folder / "artifacts"
    assert {path.name for path in artifacts.iterdir()} == {
        "source-direction",
        "native-direction",
        "map-ridge",
        "map-procrustes",
        "transferred-ridge",
        "transferred-procrustes",
    }
    fitted, native = (
        load_map(artifacts / "map-ridge"),
        load_direction(artifacts / "native-direction"),
    )
    source = load_direction(artifacts / "source-direction")
    assert fitted.source.is_same_model(source.model)
    assert fitted.target.is_same_model(native.model)
    for method in ("ridge", "procrustes"):
        carried = load_direction(artifacts / f"transferred-{method}")
        assert carried.model.is_same_model(native.model)
        assert carried.sites == (fitted.target_site,)


def test_a_carried_direction_is_certified_with_what_was_measured(result: RunResult):
    folder = result.folder / "artifacts" / "transferred-ridge"
    certificate = load_direction(folder).certificate
    assert certificate is not None
    assert load_direction(folder.parent / "native-direction").certificate is None
    (swap,) = [m for m in on_test(result, "transferred", "swap") if m.map == "ridge"]
    said = certificate.behaviour["swap"]
    assert (said.value, said.low, said.high, said.n) == (
        swap.value,
        swap.ci_low,
        swap.ci_high,
        swap.n,
    )
    assert certificate.setting == {
        "task": swap.task,
        "edit": swap.edit,
        "positions": swap.positions,
        "strength": swap.strength,
    }
    native = value(result, "native", "swap")
    assert certificate.behaviour["swap of the native direction"].value == native
    best = certificate.behaviour["swap of the best control"].value
    controls = [m.value for c in ("random", "noise") for m in on_test(result, c, "swap")]
    assert best is not None
    assert best >= max(v for v in controls if v is not None)
    assert certificate.damage.keys() == {"benign_kl", "benign_accuracy", "false_trigger_rate"}
    assert certificate.norms["states"] > 0
    assert len(certificate.corpus["sha256"]) == 64
    assert inspect(folder)["certificate"]["behaviour"]["swap"]["value"] == swap.value


def test_the_report_is_one_file_that_opens_without_a_network(result: RunResult):
    page = result.report.read_text(encoding="utf-8")
    loads = re.findall(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", page)
    loads += re.findall(r"url\(\s*[\"']?\s*(?:https?:)?//|@import", page)
    assert not loads
    assert "<link" not in page
    assert f"{value(result, 'transferred', 'swap'):.2f}" in page


def test_provenance_tells_code_versions_models_seeds_machine_and_time(result: RunResult):
    found = json.loads((result.folder / "provenance.json").read_text(encoding="utf-8"))
    assert found.keys() >= {"commit", "versions", "machine", "seeds", "models", "stages"}
    assert set(found["models"]) == {"organism:llama-backdoor", "organism:qwen2-backdoor"}
    assert all(len(model["weights_sha256"]) == 64 for model in found["models"].values())
    assert any(stage["name"] == "qwen2-backdoor: test" for stage in found["stages"])
    assert all(stage["wall_s"] >= 0 <= stage["cpu_s"] for stage in found["stages"])


def test_the_written_configuration_is_the_whole_one_and_reads_back(result: RunResult):
    path = result.folder / "config.yaml"
    assert read_config(path) == small_config()
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == set(
        type(small_config()).model_fields
    )


def test_a_second_run_finds_its_crossing_in_the_cache_and_the_same_numbers(
    result: RunResult, tmp_path: Path
):
    notes = Notes([])
    again = run(small_config(), out=tmp_path / "again", progress=notes)
    assert any("found in the cache" in note for note in notes.said)
    for name in ("results.jsonl", "completions.json", "config.yaml"):
        assert (again.folder / name).read_bytes() == (result.folder / name).read_bytes()
    assert from_cache(again) == [True]


def test_an_earlier_run_is_replaced_as_a_whole(result: RunResult, tmp_path: Path):
    out = tmp_path / "results"
    shutil.copytree(result.folder, out)
    (out / "left-over.txt").write_text("old", encoding="utf-8")
    run(small_config(), out=out)
    assert not (out / "left-over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="not a results folder: choose another --out"):
        run(small_config(), out=tmp_path)
    assert names_in(tmp_path) == {"thesis.txt"}


def from_cache(result: RunResult) -> list[bool]:
    written: dict[str, Any] = json.loads((result.folder / "provenance.json").read_text())
    return [crossing["from_cache"] for crossing in written["crossings"]]


@pytest.fixture
def two_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A source and two targets in a place with a cache of its own."""
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    return [save_tiny(tmp_path / f"model-{i}", n_layers=2 + i, seed=i) for i in range(3)]


def test_after_a_crossing_is_lost_only_that_one_is_computed_again(
    two_targets: list[str], tmp_path: Path
):
    config = brief_config(*two_targets)
    first = run(config, out=tmp_path / "runs" / "first")
    assert from_cache(first) == [False, False]
    kept = cache_folder() / "crossings"
    lost = next(p for p in kept.iterdir() if two_targets[2] in (p / "summary.json").read_text())
    (lost / "results.jsonl").unlink()
    second = run(config, out=tmp_path / "runs" / "second")
    assert from_cache(second) == [True, False]
    assert untimed(second) == untimed(first)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"first", "second"}


def test_two_targets_have_artifacts_of_their_own_and_stand_in_the_order_given(
    two_targets: list[str], tmp_path: Path
):
    result = run(brief_config(*two_targets), out=tmp_path / "run")
    for number, target in enumerate(two_targets[1:], start=1):
        carried = load_direction(
            result.folder / "artifacts" / f"crossing-{number}" / "transferred-ridge"
        )
        assert carried.model.name == target
    assert list(dict.fromkeys(m.target for m in result.measurements)) == two_targets[1:]


def test_a_run_that_fails_half_way_keeps_what_was_finished_and_leaves_nothing_half_written(
    two_targets: list[str], tmp_path: Path
):
    source, good, _ = two_targets
    short = save_tiny(tmp_path / "short", seed=5, max_position_embeddings=24)
    with pytest.raises(DataError, match="positions"):
        run(brief_config(source, good, short), out=tmp_path / "runs" / "one")
    assert names_in(tmp_path / "runs") == set()
    resumed = run(brief_config(source, good), out=tmp_path / "runs" / "two")
    assert from_cache(resumed) == [True]


def test_a_run_that_fails_spoils_no_earlier_one(two_targets: list[str], tmp_path: Path):
    out = tmp_path / "run"
    run(brief_config(*two_targets[:2]), out=out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(SiteError, match=re.escape("resid_post[99]")):
        run(brief_config(*two_targets[:2], target_sites=["resid_post[99]"]), out=out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_computing_again_gives_the_same_numbers_however_many_crossings_run_at_once(
    two_targets: list[str], tmp_path: Path
):
    one_by_one = run(brief_config(*two_targets), out=tmp_path / "a", is_cached=False)
    at_once = run(brief_config(*two_targets, n_parallel=2), out=tmp_path / "b", is_cached=False)
    assert untimed(one_by_one) == untimed(at_once)
    assert from_cache(at_once) == [False, False]


class InterruptsAt(SilentProgress):
    """Presses Ctrl-C when the first stage of a name begins, and remembers all stages."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, []

    def stage(self, name, total=None):
        self.seen.append(name)
        if self.seen.count(self.name) == 1 and name == self.name:
            # As a terminal does: what the main thread waits for is interrupted.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return super().stage(name, total)


def test_ctrl_c_ends_a_run_before_its_crossings_are_done(two_targets: list[str], tmp_path: Path):
    progress = InterruptsAt("fit a ridge map per layer")
    # What other tests start, such as Ray, may have put a handler of its own there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(brief_config(*two_targets), out=tmp_path / "runs" / "one", progress=progress)
    finally:
        signal.signal(signal.SIGINT, before)
    assert progress.name in progress.seen
    assert "test" not in progress.seen
    assert names_in(tmp_path / "runs") == set()
