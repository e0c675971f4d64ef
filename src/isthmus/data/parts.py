"""Which of the texts that maps read are fitted on, choose, or measure."""

from typing import Literal

Part = Literal["train", "selection", "held_out"]
PARTS: tuple[Part, ...] = ("train", "selection", "held_out")


def part_of_text(index: int) -> Part:
    """Returns which part a text belongs to: of ten, seven train, one selects, two are held out."""
    return "selection" if index % 10 == 3 else "held_out" if index % 10 in {6, 9} else "train"
