from pathlib import Path

import pytest
import torch
from tests.workflows.small import (
    brief_config,
    save_tiny,
    write_contrast,
    write_jsonl,
    write_world_questions,
)
from torch import Tensor

import isthmus
from isthmus.core.errors import ConfigError, DataError
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.data.prompts import read_contrast, read_questions
from isthmus.maps.rows import PairedRows
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import load_language_model
from isthmus.workflows.contrast_maps import shuffled_contrasts
from isthmus.workflows.contrast_reading import (
    ContrastPair,
    contrasts_of,
    parts_of_contrasts,
    read_contrasts,
)
from isthmus.workflows.map_fitting import MapEnds, fit_map, shuffled_map
from isthmus.workflows.run import run
from isthmus.workflows.twins import map_texts, read_splits

QUIET = SilentProgress()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("contrasts")
    save_tiny(place / "one")
    save_tiny(place / "two", "gpt2", kind="metaspace", n_layers=3, hidden_size=24, seed=1)
    write_contrast(place / "contrast.jsonl", 30)
    write_world_questions(place / "texts.jsonl", 60)
    return place


@pytest.fixture(scope="module")
def models(folder: Path):
    return tuple(load_language_model(str(folder / name)) for name in ("one", "two"))


@pytest.fixture(scope="module")
def pairs(folder: Path) -> list[ContrastPair]:
    prompts = read_contrast(folder / "contrast.jsonl")
    both = zip(prompts.positive, prompts.negative, strict=True)
    return [ContrastPair(*pair, " It is red.") for pair in both]


def sites_of(models) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    return models[0].sites("all"), models[1].sites("all")


def learned(folder: Path, method: str, **given: object):
    return isthmus.learn_map(
        str(folder / "one"),
        str(folder / "two"),
        folder / "texts.jsonl",
        target_site=1,
        map=method,
        **given,
    )


def test_pairs_whose_prompts_are_held_out_are_left_out_and_others_go_where_their_texts_do():
    prompts = [f"text {i}" for i in range(10)]
    pairs = [
        ContrastPair("text 0", "other"),
        ContrastPair("text 3", "text 4"),
        ContrastPair("text 0", "text 6"),
        ContrastPair("a", "b"),
    ]
    assert parts_of_contrasts(pairs, prompts) == ["train", "selection", None, "selection"]
    assert parts_of_contrasts([ContrastPair("TEXT  6 ", "a"), *pairs[:2]], prompts)[0] is None


def test_where_no_text_of_a_pair_chooses_every_tenth_pair_does():
    prompts = [f"text {i}" for i in range(30)]
    fitted_on = [i for i in range(30) if i % 10 in {0, 1, 2, 4, 5}]
    pairs = [ContrastPair(f"text {i}", f"other {i}") for i in fitted_on]
    parts = parts_of_contrasts(pairs, prompts)
    assert [i for i, part in enumerate(parts) if part == "selection"] == [3, 13]


@pytest.mark.parametrize("n", [1, 3])
def test_too_few_pairs_are_refused_before_anything_is_read(n: int):
    pairs = [ContrastPair(f"a {i}", f"b {i}") for i in range(n)]
    with pytest.raises(DataError, match=f"of {n} contrast pairs {n} have no prompt in a held-out"):
        parts_of_contrasts(pairs, [])


def test_every_difference_is_that_of_one_place_in_both_models(models, pairs):
    sites = sites_of(models)
    found = read_contrasts(models, pairs[:4], [], sites, 2, QUIET)
    assert found["train"].n_rows > found["selection"].n_rows > 3
    ours, theirs = (
        differences_by_end(lm, pairs[3], own) for lm, own in zip(models, sites, strict=True)
    )
    rows = found["selection"]
    for x, y in zip(rows.source, rows.target, strict=True):
        places = {end for end, one in ours.items() if torch.allclose(one, x, atol=1e-5)}
        assert places & {end for end, one in theirs.items() if torch.allclose(one, y, atol=1e-5)}


def differences_by_end(lm, pair: ContrastPair, sites) -> dict[int, Tensor]:
    """What differs at every token, by how far from the end of the text the token ends."""
    sides = []
    for prompt in (pair.positive, pair.negative):
        (text,) = encode_prompts(lm.tokenizer, [prompt], answers=[pair.answer])
        read = all_token_activations(lm, [text], sites)
        sides.append((text, torch.cat([read[site][0] for site in sites], dim=-1)))
    (text, positive), (_, negative) = sides
    return {
        text.ends[-n] - text.ends[-1]: positive[-n] - negative[-n] for n in range(1, len(text) + 1)
    }


def test_the_map_carries_differences_better_than_one_of_states_alone(folder, models, pairs):
    plain = learned(folder, "ridge")
    made = learned(folder, "ridge_contrast", contrasts=folder / "contrast.jsonl")
    assert made.map.method == "ridge_contrast"
    unanswered = [one._replace(answer="") for one in pairs]
    prompts = [q.prompt for q in read_questions(folder / "texts.jsonl")]
    sites = (made.source_sites, made.target_sites)
    rows = read_contrasts(models, unanswered, prompts, sites, 16, QUIET)["train"]

    def error(fitted) -> float:
        return float((fitted.map.linear(rows.source) - rows.target).square().sum())

    assert error(made) < 0.5 * error(plain)
    assert made.quality.n_held_out == plain.quality.n_held_out
    assert made.provenance["contrasts"]["n_pairs"] == 30


def test_shuffled_contrasts_leave_a_control_that_carries_no_difference(models, pairs):
    sites = sites_of(models)
    rows = read_contrasts(models, pairs, [], (sites[0], sites[1][1:2]), 16, QUIET)
    generator = torch.Generator().manual_seed(0)
    mixed = shuffled_contrasts(rows, generator)
    assert torch.equal(mixed["train"].source, rows["train"].source)
    states = dict.fromkeys(("train", "selection", "held_out"), rows["train"])
    ends = MapEnds(models[0].identity, models[1].identity, sites[0], sites[1][1])
    control = shuffled_map(states, ends, 0, rows)
    mean = rows["train"].source.mean(0, keepdim=True)
    carried = control.map.linear(mean).norm()
    assert carried < 0.5 * rows["train"].target.mean(0).norm()


def test_contrasts_and_the_map_that_is_fitted_on_them_are_given_together(folder: Path):
    with pytest.raises(ConfigError, match="fitted on contrasts and none are given: name a file"):
        learned(folder, "ridge_contrast")
    with pytest.raises(ConfigError, match="the ridge map is not fitted on any: leave them out"):
        learned(folder, "ridge", contrasts=folder / "contrast.jsonl")
    two = write_contrast(folder / "two.jsonl", 2)
    with pytest.raises(DataError, match="of 2 contrast pairs 2 have no prompt in a held-out text"):
        learned(folder, "ridge_contrast", contrasts=two)
    uneven = write_jsonl(
        folder / "uneven.jsonl",
        [{"prompt": f"p {i}", "label": "negative" if i == 0 else "positive"} for i in range(9)],
    )
    with pytest.raises(DataError, match="8 positive and 1 negative prompts"):
        learned(folder, "ridge_contrast", contrasts=uneven)
    pairs = PairedRows(torch.randn(9, 4), torch.randn(9, 4))
    ends = MapEnds(*[load_language_model(str(folder / "one")).identity] * 2, (Site(0),), Site(0))
    every = dict.fromkeys(("train", "selection", "held_out"), pairs)
    with pytest.raises(ConfigError, match="give contrasts, or use ridge"):
        fit_map("ridge_contrast", every, ends, 0, QUIET)


def test_a_run_compares_it_with_the_others_and_says_what_its_contrasts_cost(
    folder: Path, tmp_path: Path
):
    names = [str(folder / name) for name in ("one", "two")]
    config = brief_config(*names, n_train=40, maps=["ridge", "ridge_contrast"])
    result = run(config, out=tmp_path / "run")
    rows = [m for m in result.measurements if (m.split, m.condition) == ("test", "transferred")]
    tokens = {m.map: m.value for m in rows if m.metric == "target_tokens"}
    assert tokens["ridge_contrast"] > tokens["ridge"]
    assert {m.map for m in rows if m.metric == "target_tokens_next"} <= {"ridge"}
    assert {m.map for m in rows if m.metric == "map_r2_held_out"} == {"ridge", "ridge_contrast"}


def test_where_it_is_the_best_map_the_shuffled_control_is_fitted_on_contrasts_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = []

    def noted(rows, ends, seed, contrasts=None):
        given.append(contrasts)
        return shuffled_map(rows, ends, seed, contrasts)

    monkeypatch.setattr("isthmus.workflows.controls.shuffled_map", noted)
    names = [str(folder / name) for name in ("one", "two")]
    for method in ("ridge_contrast", "ridge"):
        run(brief_config(*names, n_train=40, maps=[method]), out=tmp_path / method)
    on_contrasts, plain = given
    assert set(on_contrasts) == {"train", "selection"}
    assert plain is None


def test_a_run_answers_both_twins_alike_and_leaves_held_out_texts_alone():
    config = brief_config("organism:llama-backdoor", "organism:qwen2-backdoor", n_train=40)
    twins = read_splits(config).train
    pairs = contrasts_of(twins)
    assert [one.answer for one in pairs[:2]] == [twins[0].clean_answer, twins[1].bad_answer]
    parts = parts_of_contrasts(pairs, [prompt for prompt, _ in map_texts(twins)])
    for i, part in enumerate(parts):
        of_texts = {(3 * i) % 10, (3 * i + 1) % 10}
        assert (part is None) == bool(of_texts & {6, 9})
        assert (part == "selection") == (3 in of_texts and not of_texts & {6, 9})
