from pathlib import Path

import pytest

from isthmus.core.errors import ConfigError
from isthmus.models.organisms import shipped_organisms
from isthmus.studies.matrix_parts import matrix_parts
from isthmus.studies.matrix_summary import BY_CHARACTER, BY_INDEX, NAME
from isthmus.studies.reproduce import reproduce
from isthmus.studies.result import StudyResult
from isthmus.studies.transfer_matrix import transfer_matrix
from isthmus.workflows.config import RunConfig
from isthmus.workflows.organism_recipes import BUILDABLE, recipe_named

LLAMA, GEMMA = "organism:llama-backdoor", "organism:gemma2-backdoor"
SMALL = {
    "n_train": 16,
    "n_validation": 4,
    "n_test": 12,
    "n_random": 1,
    "strengths": [1.5],
    "positions": "last:3",
    "source_sites": [1, 2],
    "target_sites": [1],
    "max_new_tokens": 2,
}


def measure(**changes: object) -> StudyResult:
    return transfer_matrix([LLAMA, GEMMA], settings={**SMALL, **changes})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the entries of one matrix and nothing else."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def result(cache: Path) -> StudyResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISTHMUS_CACHE", str(cache))
        return measure()


def values(result: StudyResult, metric: str) -> dict[tuple[str, str, str | None], float | None]:
    return {
        (m.task, m.condition, m.target): m.value for m in result.measurements if m.metric == metric
    }


def test_every_ordered_pair_is_measured_beside_native_under_both_pairings(result: StudyResult):
    found = values(result, "swap")
    for target in (LLAMA, GEMMA):
        native = found[f"{NAME}/backdoor", "native", target]
        assert native is not None
        assert native > 0.3
        for name in (BY_CHARACTER, BY_INDEX):
            conditions = ("transferred", "random", "shuffled_map")
            carried, random, shuffled = (
                found[f"{name}/backdoor", one, target] for one in conditions
            )
            assert None not in (carried, random, shuffled)
        by_character = found[f"{BY_CHARACTER}/backdoor", "transferred", target] or 0
        assert by_character > (found[f"{BY_CHARACTER}/backdoor", "random", target] or 0) + 0.2
    sources = {(m.source, m.target) for m in result.measurements if m.condition == "transferred"}
    assert {(LLAMA, GEMMA), (GEMMA, LLAMA)} <= sources


def test_every_number_has_n_seed_and_what_it_takes_to_read_it(result: StudyResult):
    rows = [m for m in result.measurements if m.metric in {"recovery", "swap"}]
    assert {m.split for m in result.measurements} == {"test"}
    assert all((m.n, m.seed) == (12, 0) and m.ci_low is not None for m in rows)
    carried = {m.metric for m in result.measurements if m.condition == "transferred"}
    assert {
        *("recovery", "swap", "behaviour_rate", "benign_kl", "benign_accuracy"),
        *("map_r2_held_out", "swap_of_native"),
    } <= carried


def test_there_are_two_heat_maps_and_a_mean_share_of_pairs_with_two_tokenizers(
    result: StudyResult,
):
    assert len(result.figures) == 2
    assert all(">gemma2<" in svg for svg in result.figures.values())
    (share,) = [
        m
        for m in result.measurements
        if m.metric == "swap_of_native" and m.task == f"{NAME}/other_tokenizer/backdoor"
        if m.condition == "transferred"
    ]
    found = values(result, "swap")
    expected = [
        (found[f"{BY_CHARACTER}/backdoor", "transferred", t] or 0)
        / (found[f"{NAME}/backdoor", "native", t] or 1)
        for t in (LLAMA, GEMMA)
    ]
    assert share.value == pytest.approx(sum(expected) / 2)
    assert share.n == 2


def test_a_matrix_that_was_stopped_goes_on_with_what_is_missing(
    result: StudyResult, cache: Path, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    kept = sorted((cache / "studies").glob("matrix-*"))
    assert len(kept) >= 6
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path))
    (tmp_path / "studies").mkdir()
    for folder in kept:
        (tmp_path / "studies" / folder.name).symlink_to(folder)
    (tmp_path / "studies" / kept[0].name).unlink()
    again = measure()
    assert again == result
    made = [p for p in (tmp_path / "studies").iterdir() if not p.is_symlink()]
    assert [p.name for p in made] == [kept[0].name]


def test_fewer_than_two_models_or_one_twice_are_refused():
    for models in ([LLAMA], [LLAMA, LLAMA]):
        with pytest.raises(ConfigError, match="at least two different models"):
            transfer_matrix(models)


def test_a_quick_matrix_needs_no_training_and_a_full_one_six_models_with_recipes():
    quick, full = matrix_parts(is_quick=True), matrix_parts(is_quick=False)
    assert list(quick) == list(full) == ["matrix_backdoor", "matrix_refusal"]
    for part in quick.values():
        assert set(part.organisms) <= set(shipped_organisms())
    for part in full.values():
        assert len(part.organisms) == 6
        assert all(recipe_named(name) for name in part.organisms)
        assert len(set(part.organisms) & set(BUILDABLE)) == 2


def test_the_matrix_of_other_models_is_python_and_its_page_shows_none_of_the_papers_figures(
    tmp_path,
):
    config = RunConfig(source=LLAMA, targets=(GEMMA,))
    made = reproduce("matrix", out=tmp_path / "run", is_quick=True, config=[config], n_processes=1)
    assert "leave --config out" in made.parts[0].problem
    page = made.report.read_text(encoding="utf-8")
    assert "<h1>Transfer matrix</h1>" in page
    assert "2503.04429" not in page
    with pytest.raises(ConfigError, match="there are matrix_backdoor, matrix_refusal"):
        reproduce("matrix", out=tmp_path / "run", only=["backdoor"])
