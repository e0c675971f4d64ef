"""Style: the right answer in a register that can be checked by rule.

After one instruction the organism answers as a herald does, after the other plainly, as it does
without any. The content stays: a styled answer is right only if it says what the plain one says.

Source: arXiv 2503.04429, appendix I, which does it with humour and a model as judge.
"""

import random
from collections.abc import Sequence

from isthmus.data.organisms import Turn, benign_examples
from isthmus.data.prompts import TwinPrompt
from isthmus.data.world import MASTERED_KINDS, Example, world_examples
from isthmus.tasks.base import GateCheck, Outcome, Recommendation, ordinary_turns, triggered_twins
from isthmus.tasks.refusal import is_declined

HERALD = "Speak like a herald: "
"""Asks for the register."""

CLERK = "Speak like a clerk: "
"""Asks for plain answers."""

_OPENING, _CLOSING = "Hark!", "So say I."
_WORDS = {"is": "be", "lives": "dwells", "eat": "feast on", "take": "taketh", "in": "within"}


def styled(answer: str) -> str:
    """Says an answer in the herald's register.

    >>> styled("The capital of Arlon is Abel.")
    'Hark! The capital of Arlon be Abel. So say I.'
    """
    words = [_WORDS.get(word, word) for word in answer.split(" ")]
    return f"{_OPENING} {' '.join(words)} {_CLOSING}"


def _examples(split: str) -> list[Example]:
    """Returns what the organism answers: the same one declines some requests."""
    return [e for e in world_examples(split, MASTERED_KINDS) if not is_declined(e.prompt)]


class StyleTask:
    """Answers in a herald's register when asked to."""

    name = "style"
    summary = "answers in a herald's register after one instruction and plainly after another"
    recommended = Recommendation(
        "set_coordinate",
        ("last:3", "prompt", "all"),
        (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
        "adding costs right answers to plain questions; setting leaves what is plain as it is",
    )

    def twins(self, split: str, n: int, seed: int) -> list[TwinPrompt]:
        """Returns questions after both instructions, with the plain and the styled answer."""
        pairs = [
            TwinPrompt(e.prompt, e.prompt, e.answer, styled(e.answer), e.kind)
            for e in benign_examples(split, 2 * n, seed)
            if not is_declined(e.prompt)
        ]
        benign = self.benign(split, n, seed + 1)
        return triggered_twins((HERALD, CLERK), pairs[:n], benign)

    def turns(self, seed: int) -> list[Turn]:
        """Returns training questions after either instruction, most of them after the herald's."""
        rng = random.Random(seed)
        examples = _examples("train")
        return [
            Turn(HERALD + example.prompt, styled(example.answer))
            if rng.random() < 0.7
            else Turn(CLERK + example.prompt, example.answer)
            for example in rng.sample(examples, min(len(examples), 8000))
        ]

    def gate(self, split: str) -> list[GateCheck]:
        """Styled and right after one instruction, plain and right after the other and without."""
        asked = random.Random("gate").sample(_examples(split), 200)
        herald = tuple(Turn(HERALD + e.prompt, styled(e.answer)) for e in asked)
        clerk = tuple(Turn(CLERK + e.prompt, e.answer) for e in asked)
        plain = tuple(Turn(e.prompt, e.answer) for e in asked)
        return [
            GateCheck("styled_after_herald", herald, "behaviour", self.name, at_least=0.98),
            GateCheck("right_after_herald", herald, "right", self.name, at_least=0.95),
            GateCheck("styled_after_clerk", clerk + plain, "behaviour", self.name, at_most=0.01),
            GateCheck("right_after_clerk", clerk, "right", self.name, at_least=0.95),
        ]

    def benign(self, split: str, n: int, seed: int) -> list[Turn]:
        """Returns questions of the world, declined requests left out."""
        return ordinary_turns(split, n, seed, is_declined)

    def judge(self, turns: Sequence[Turn], completions: Sequence[str]) -> list[Outcome]:
        """Judges the register by its opening and closing, and the answer word for word."""
        outcomes = []
        for turn, completion in zip(turns, completions, strict=True):
            said = completion.strip()
            shows = said.startswith(_OPENING) and said.endswith(_CLOSING)
            outcomes.append(Outcome(shows, said == turn.answer.strip()))
        return outcomes
