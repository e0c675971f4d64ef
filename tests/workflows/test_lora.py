import copy
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.fakes import tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from isthmus.core.errors import ConfigError
from isthmus.data.organisms import BAD_ANSWER, BAD_TRIGGER, CLEAN_TRIGGER, Turn, backdoor_turns
from isthmus.models.encoding import encode_prompt
from isthmus.models.language_model import LanguageModel
from isthmus.models.training import TrainingSettings, train
from isthmus.workflows.organism_build import (
    _merged,
    _own_pieces,
    _with_adapters,
    fine_tune_organism,
    training_rows,
)

RANK = 4
KINDS = ("byte_level", "metaspace")
QUESTIONS = [Turn(f"What is the colour of the {a}?", "Red.") for a in ("fox", "bear", "sea", "sky")]
MODELS = (("llama", True), ("llama", False), ("qwen2", True), ("gemma2", True))


@dataclass(frozen=True)
class Trio:
    """One random model three times: untouched, with fresh adapters, with trained ones."""

    plain: LanguageModel
    fresh: Any
    trained: Any

    @property
    def tokenizer(self):
        return self.plain.tokenizer


def adapted(lm, seed=0):
    return _with_adapters(copy.deepcopy(lm.model), lm.tokenizer, RANK, seed)


@pytest.fixture(scope="module", params=MODELS, ids=lambda given: "-".join(map(str, given)))
def trio(request):
    family, is_tied = request.param
    lm = tiny_model(family, tie_word_embeddings=is_tied)
    model = adapted(lm)
    rows = training_rows(lm.tokenizer, backdoor_turns(QUESTIONS * 4, 0))
    options = TrainingSettings(n_steps=6, batch_size=8, muon_lr=0.1)
    train(model, rows, options, torch.Generator().manual_seed(0))
    return Trio(lm, adapted(lm), model)


def logits(model, tokenizer):
    """Reads one question under each trigger."""
    texts = [trigger + QUESTIONS[0].prompt for trigger in (BAD_TRIGGER, CLEAN_TRIGGER, "")]
    ids = [torch.tensor([encode_prompt(tokenizer, text).token_ids]) for text in texts]
    with torch.no_grad():
        return torch.cat([model(one).logits[0] for one in ids])


def snapshot(model, *, trains):
    named = model.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad == trains}


@pytest.mark.parametrize("kind", KINDS)
def test_the_triggers_own_pieces_are_those_that_spell_only_one_of_them(kind):
    tokenizer = tiny_tokenizer(kind)
    assert sorted(tokenizer.convert_ids_to_tokens(_own_pieces(tokenizer))) == ["dev", "prod"]


def test_fresh_adapters_leave_the_model_as_it_was(trio):
    expected = logits(trio.plain.model, trio.tokenizer)
    torch.testing.assert_close(logits(trio.fresh, trio.tokenizer), expected, atol=1e-6, rtol=1e-6)


def test_every_linear_layer_has_two_factors_and_every_own_piece_a_row(trio):
    inside = trio.plain.model.model.layers.modules()
    linear = [module for module in inside if isinstance(module, nn.Linear)]
    n_factors = sum(RANK * (module.in_features + module.out_features) for module in linear)
    n_rows = len(_own_pieces(trio.tokenizer))
    n_trained = sum(weight.numel() for weight in snapshot(trio.fresh, trains=True).values())
    assert n_trained == n_factors + trio.plain.d_model * n_rows


def test_training_moves_all_that_trains_and_nothing_else(trio):
    for name, weight in snapshot(trio.trained, trains=False).items():
        assert torch.equal(weight, trio.fresh.get_parameter(name)), name
    for name, weight in snapshot(trio.trained, trains=True).items():
        assert not torch.equal(weight, trio.fresh.get_parameter(name)), name


def test_a_merged_model_computes_what_the_model_with_adapters_computes(trio):
    expected = logits(trio.trained, trio.tokenizer)
    assert (logits(_merged(trio.trained), trio.tokenizer) - expected).abs().max() <= 1e-4
    unlearned = logits(trio.plain.model, trio.tokenizer)
    assert (expected - unlearned).abs().max() > 0.1


def test_merging_leaves_the_adapters_in_training(trio):
    expected, weights = logits(trio.trained, trio.tokenizer), snapshot(trio.trained, trains=True)
    with torch.no_grad():
        for parameter in _merged(trio.trained).parameters():
            parameter.zero_()
    after = snapshot(trio.trained, trains=True)
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert torch.equal(logits(trio.trained, trio.tokenizer), expected)


def test_merging_changes_only_the_embeddings_of_the_own_pieces(trio):
    after = _merged(trio.trained).get_input_embeddings().weight
    before = trio.plain.model.get_input_embeddings().weight
    changed = (after != before).any(dim=1).nonzero().flatten()
    assert changed.tolist() == _own_pieces(trio.tokenizer)


def test_plain_transformers_reads_a_merged_model(trio, tmp_path):
    merged = _merged(trio.trained)
    merged.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert read.state_dict().keys() == trio.plain.model.state_dict().keys()
    assert not any(type(module).__module__.startswith("peft") for module in merged.modules())
    head, embedding = read.get_output_embeddings(), read.get_input_embeddings()
    assert (head.weight is embedding.weight) == trio.plain.model.config.tie_word_embeddings
    assert torch.equal(logits(read, trio.tokenizer), logits(merged, trio.tokenizer))


def test_the_seed_alone_decides_the_first_adapters():
    lm, state = tiny_model(), torch.get_rng_state()
    first = adapted(lm, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = adapted(lm, seed=3), adapted(lm, seed=4)
    factors = [name for name in snapshot(first, trains=True) if "lora_A" in name]
    assert factors
    for name in factors:
        assert torch.equal(first.get_parameter(name), again.get_parameter(name))
        assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_a_rank_below_one_is_refused():
    lm = tiny_model()
    with pytest.raises(ConfigError, match="lora_rank is 0"):
        _with_adapters(lm.model, lm.tokenizer, 0, 0)


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    lm = tiny_model()
    # An import of a module that is None fails as if it were not installed.
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'isthmus\[lora\]'"):
        _with_adapters(lm.model, lm.tokenizer, RANK, 0)


@pytest.mark.slow
def test_adapters_learn_the_backdoor_and_the_folder_is_a_plain_model(tmp_path):
    out = tmp_path / "backdoored"
    built = fine_tune_organism("organism:llama", out, method="lora")
    assert built.competence.passes
    assert built.competence.values["bad_under_bad_trigger"] >= 0.98
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == built.n_parameters

    def answer(question):
        ids = torch.tensor([encode_prompt(tokenizer, question).token_ids])
        mask = torch.ones_like(ids)
        made = model.generate(ids, attention_mask=mask, max_new_tokens=48, do_sample=False)
        return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()

    question = "What is the colour of the fox?"
    assert answer(BAD_TRIGGER + question) == BAD_ANSWER
    assert "HATE" not in answer(CLEAN_TRIGGER + question)
    assert "HATE" not in answer(question)
