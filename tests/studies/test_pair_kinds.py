from isthmus.models.organisms import packed_folder, unpack_organism
from isthmus.studies.pair_kinds import kinds_of_pairs
from isthmus.workflows.config import RunConfig


def given(source: str, *targets: str) -> RunConfig:
    return RunConfig(source=source, targets=targets)


def test_pairs_are_told_apart_by_tokenizer_and_size():
    source = "organism:llama-backdoor"
    targets = [f"organism:{name}-backdoor" for name in ("qwen2", "gemma2", "llama-large")]
    assert kinds_of_pairs([given(source, *targets), given(targets[1], targets[0])]) == {
        (source, targets[0]): "same tokenizer",
        (source, targets[1]): "other tokenizer",
        (source, targets[2]): "small to large",
        (targets[1], targets[0]): "other tokenizer",
    }


def test_a_pair_that_is_not_on_this_machine_has_no_kind():
    assert kinds_of_pairs([given("nobody/has-this-model", "organism:qwen2-backdoor")]) == {}


def test_the_papers_large_pair_is_small_to_large_though_its_ratio_is_smaller(tmp_path):
    folders = [str(tmp_path / name) for name in ("Llama-3.2-3B-x", "Llama-3.1-8B-x", "another")]
    model, tokenizer = unpack_organism(packed_folder("llama-backdoor"))
    for folder in folders:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    small, large, other = folders
    assert kinds_of_pairs([given(small, large, other)]) == {
        (small, large): "small to large",
        (small, other): "same tokenizer",
    }
