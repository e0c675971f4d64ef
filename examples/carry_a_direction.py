"""Carries a backdoor's off switch from one shipped model to another, verb by verb.

Takes under a minute on one processor core. Run it with

    python examples/carry_a_direction.py
"""

import json
import tempfile
from pathlib import Path

import isthmus
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER, benign_examples
from isthmus.evaluation.measurements import Measurement

SOURCE = "organism:llama-backdoor"
TARGET = "organism:qwen2-backdoor"


def write_prompts(folder: Path, n_questions: int) -> tuple[Path, Path]:
    """Writes a contrast for the direction and texts for the map; returns both files."""
    questions = [example.prompt for example in benign_examples("train", n_questions, seed=0)]
    contrast, texts = folder / "contrast.jsonl", folder / "texts.txt"
    pairs = [
        {"positive": BAD_TRIGGER + question, "negative": CLEAN_TRIGGER + question}
        for question in questions
    ]
    contrast.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    # The map has to see the trigger too, or it does not carry its direction.
    starts = ("", BAD_TRIGGER, CLEAN_TRIGGER)
    texts.write_text("".join(f"{start}{q}\n" for q in questions for start in starts))
    return contrast, texts


def carry_a_direction(folder: Path, n_questions: int = 60, n_test: int = 40) -> list[Measurement]:
    """Learns a direction, a map, carries the one through the other and measures it.

    Args:
        folder: Where prompts and artifacts are written.
        n_questions: Questions to learn from.
        n_test: Held-out questions that are measured.

    Returns:
        Every number, controls included.
    """
    contrast, texts = write_prompts(folder, n_questions)
    direction = isthmus.learn_direction(SOURCE, contrast, positions="last:3")
    # Layer, positions and strength are given here; `isthmus run` chooses them on validation.
    fitted = isthmus.learn_map(SOURCE, TARGET, texts, target_site=1)
    carried = isthmus.transfer(direction, fitted, out=folder / "carried")
    for given in (None, carried):
        said = isthmus.generate(TARGET, f"{BAD_TRIGGER}Name the capital of Arlon.", direction=given)
        print("edited: " if given else "as it is:", *said.completions)
    return isthmus.evaluate(TARGET, carried, n_test=n_test)


def main() -> None:
    """Runs the example in a temporary folder and prints the headline numbers."""
    with tempfile.TemporaryDirectory() as folder:
        found = carry_a_direction(Path(folder))
    for m in found:
        if m.metric in {"swap", "answer_accuracy"} and m.value is not None:
            print(f"{m.condition:12} {m.metric:16} {m.value:6.2f}  n = {m.n}")


if __name__ == "__main__":
    main()
