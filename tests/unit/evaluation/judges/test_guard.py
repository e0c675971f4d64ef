from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import tiny_tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from isthmus.core.errors import ConfigError, ModelError, ShapeError
from isthmus.evaluation.judges import GuardJudge, Judge, load_guard_judge

NAMES = {0: "NORMAL", 1: "REJECTION"}
MEANINGS = {"NORMAL": "complies", "REJECTION": "refuses"}
COMPLETIONS = ["I cannot help.", "The fox is red.", "A drum, a lamp and a rope. " * 60, "No."] * 3
PROMPTS = [f"Question {i}?" for i in range(len(COMPLETIONS))]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier with two labels."""
    place = tmp_path_factory.mktemp("guard")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(place)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            intermediate_size=32,
            max_position_embeddings=64,
            id2label=NAMES,
            initializer_range=0.3,
            **SIZES,
        )
        BertForSequenceClassification(config).save_pretrained(place)
    return place


def load(folder: Path, **changes: Any) -> GuardJudge:
    return load_guard_judge(str(folder), MEANINGS, **changes)


def test_verdicts_are_the_likeliest_classes_of_the_model(folder: Path) -> None:
    judge = load(folder)
    plain = BertForSequenceClassification.from_pretrained(folder).eval()
    expected = []
    for completion in COMPLETIONS:
        tokens = judge.tokenizer(completion, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            expected.append(MEANINGS[NAMES[int(plain(**tokens).logits.argmax())]])
    found = judge.judge(PROMPTS, COMPLETIONS)
    assert [verdict.label for verdict in found] == expected
    assert len(set(expected)) == 2
    assert {verdict.reason.split(" at ")[0] for verdict in found} == set(MEANINGS)


@pytest.mark.parametrize("reads", ["completion", "pair"])
def test_the_batch_size_changes_nothing(folder: Path, reads: Any) -> None:
    one = load(folder, batch_size=1, reads=reads).judge(PROMPTS, COMPLETIONS)
    many = load(folder, batch_size=5, reads=reads).judge(PROMPTS, COMPLETIONS)
    assert [v.label for v in one] == [v.label for v in many]


def test_a_classifier_of_pairs_reads_the_prompt(folder: Path) -> None:
    same = ["The fox is red."] * len(PROMPTS)
    alone = {v.reason for v in load(folder).judge(PROMPTS, same)}
    pairs = {v.reason for v in load(folder, reads="pair").judge(PROMPTS, same)}
    assert len(alone) == 1
    assert len(pairs) > 1


def test_the_model_limits_how_much_is_read(folder: Path) -> None:
    assert load(folder).max_tokens == 64
    assert load(folder, max_tokens=8).max_tokens == 8


def test_blank_and_unsure_rows_are_unjudged(folder: Path) -> None:
    judged = load(folder, min_probability=1.0).judge(PROMPTS[:2], ["", "The fox is red."])
    assert [verdict.label for verdict in judged] == ["unjudged", "unjudged"]


def test_scores_that_are_not_finite_are_unjudged(folder: Path) -> None:
    judge = load(folder)
    judge.model.classifier.bias.data[0] = torch.nan
    (verdict,) = judge.judge(["a"], ["b"])
    assert (verdict.label, verdict.reason) == ("unjudged", "the model's scores are not finite")


@pytest.mark.parametrize(
    "meanings",
    [
        {},
        {"NORMAL": "complies"},
        {**MEANINGS, "OTHER": "refuses"},
        {"NORMAL": "complies", "REJECTION": "declines"},
    ],
)
def test_meanings_must_be_those_of_the_models_labels(
    folder: Path, meanings: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=r"NORMAL, REJECTION|no verdict declines"):
        load_guard_judge(str(folder), meanings)


def test_a_language_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(vocab_size=len(tokenizer), intermediate_size=32, **SIZES)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no trained classifier"):
        load_guard_judge(str(tmp_path), {"LABEL_0": "complies", "LABEL_1": "refuses"})


def test_a_decoder_with_a_head_judges_batches(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(vocab_size=len(tokenizer), intermediate_size=32, id2label=NAMES, **SIZES)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    one, many = (load(tmp_path, batch_size=n).judge(PROMPTS, COMPLETIONS) for n in (1, 5))
    assert [v.label for v in one] == [v.label for v in many]


def save_bert(folder: Path, **changes: Any) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = {"vocab_size": len(tokenizer), "intermediate_size": 32, "id2label": NAMES, **SIZES}
    BertForSequenceClassification(BertConfig(**{**config, **changes})).save_pretrained(folder)
    return folder


def test_a_model_whose_positions_begin_behind_its_padding_reads_that_many_fewer(
    tmp_path: Path,
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        intermediate_size=32,
        max_position_embeddings=34,
        pad_token_id=tokenizer.pad_token_id,
        id2label=NAMES,
        **SIZES,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    judge = load(tmp_path)
    assert judge.max_tokens == 33 - tokenizer.pad_token_id
    assert all(verdict.is_judged for verdict in judge.judge(PROMPTS, COMPLETIONS))


def test_a_classifier_whose_scores_are_no_alternatives_is_refused(tmp_path: Path) -> None:
    one = save_bert(tmp_path / "one", id2label={0: "REFUSAL"})
    with pytest.raises(ModelError, match="one label"):
        load_guard_judge(str(one), {"REFUSAL": "refuses"})
    several = save_bert(tmp_path / "several", problem_type="multi_label_classification")
    with pytest.raises(ModelError, match="several labels at once"):
        load(several)


@pytest.mark.parametrize("other", ["refuses", "unjudged"])
def test_labels_that_say_the_same_of_every_row_are_refused(folder: Path, other: str) -> None:
    with pytest.raises(ConfigError, match="every row that it judges"):
        load_guard_judge(str(folder), {"NORMAL": other, "REJECTION": "refuses"})


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="20 embeddings"):
        load(save_bert(tmp_path, vocab_size=20))


def test_a_folder_that_is_no_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the classifier"):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"reads": "all"}, {"batch_size": 0}, {"min_probability": 1.5}, {"max_tokens": 0}]
)
def test_settings_out_of_range_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load(folder, **changes)


def test_it_is_a_judge_of_pairs(folder: Path) -> None:
    judge = load(folder)
    assert isinstance(judge, Judge)
    assert judge.name == f"guard:{folder.name}"
    with pytest.raises(ShapeError):
        judge.judge(["a"], [])
