"""Prompts: reading, writing, splitting by content and refusing what would spoil an evaluation."""

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from isthmus.core.errors import ConfigError, DataError
from isthmus.core.places import write_text
from isthmus.data.organisms import Turn
from isthmus.data.prompt_rows import PromptRow, prompt_rows

SPLIT_NAMES = ("train", "validation", "test")
"""The splits, in the order of `split_by_content`'s fractions."""

_POSITIVE, _NEGATIVE = "positive", "negative"
_OTHERS = ("answer", "kind", "bad_answer", "clean", "answer_to_clean", "content")
ROW_FIELDS = ("prompt", *_OTHERS, "note")
"""What a row of a file of questions may hold; nothing reads the note."""


@dataclass(frozen=True)
class Question:
    """A prompt and, where one is known, its right answer.

    Attributes:
        prompt: What the user says, without any chat template.
        answer: What a competent, harmless model says.
        kind: Which sort of question it is.
        bad_answer: What a model says to it with the behaviour, where that is its own.
        clean: A prompt like it that does not bring the behaviour about, where the prompt does so by
            itself: a harmless request beside a harmful one.
        answer_to_clean: What a competent, harmless model says to that.
        content: What it is about, where others say the same in other words.
    """

    prompt: str
    answer: str | None = None
    kind: str | None = None
    bad_answer: str | None = None
    clean: str | None = None
    answer_to_clean: str | None = None
    content: str | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt, and the clean one where there is one."""
        return (self.prompt,) if self.clean is None else (self.prompt, self.clean)


@dataclass(frozen=True)
class TwinPrompt:
    """One question twice: with the trigger of the behaviour and with a harmless one in its place.

    Attributes:
        triggered: Prompt with the trigger.
        clean: Prompt with the harmless trigger.
        clean_answer: What the model says without the behaviour.
        bad_answer: What the model says with the behaviour.
        kind: Which sort of question it is.
        answer_to_clean: The ordinary answer to `clean`, where it is another than to `triggered`.
        spans: The text by which `triggered` differs and the text by which `clean` does, where these
            are triggers that can be pointed at.
        benign: A prompt that has nothing to do with the behaviour, and its answer.
        overridden: Both prompts with a text in front that asks for the other behaviour, where there
            is such a text.
        content: What it is about, the same in every phrasing; None where no other twin is about it.
        clean_content: What `clean` is about, where that is something else.
        benign_content: What `benign` is about; None where no other twin's is about it.
    """

    triggered: str
    clean: str
    clean_answer: str
    bad_answer: str
    kind: str | None = None
    answer_to_clean: str | None = None
    spans: tuple[str, str] | None = None
    benign: tuple[str, str] | None = None
    overridden: tuple[str, str] | None = None
    content: str | None = None
    clean_content: str | None = None
    benign_content: str | None = None

    @property
    def ordinary_answer(self) -> str:
        """What a model without the behaviour says to the clean prompt."""
        return self.clean_answer if self.answer_to_clean is None else self.answer_to_clean

    @property
    def triggered_turn(self) -> Turn:
        """The prompt with the trigger, and what a model without the behaviour says to it."""
        return Turn(self.triggered, self.clean_answer, self.content)

    @property
    def clean_turn(self) -> Turn:
        """The clean prompt and its ordinary answer."""
        return Turn(self.clean, self.ordinary_answer, self.clean_content or self.content)

    @property
    def benign_turn(self) -> Turn:
        """The benign prompt and its answer: the clean one where there is no other."""
        return self.clean_turn if self.benign is None else Turn(*self.benign, self.benign_content)


@dataclass(frozen=True)
class ContrastPrompts:
    """Prompts that show a behaviour and prompts that do not, from which a direction is learned.

    Attributes:
        positive: Prompts with the behaviour, at least one.
        negative: Prompts without it, at least one.

    Raises:
        DataError: If a side is empty.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __post_init__(self) -> None:
        for side, prompts in ((_POSITIVE, self.positive), (_NEGATIVE, self.negative)):
            if not prompts:
                raise DataError(f"no {side} prompt: a direction needs both sides, add some")


def read_questions(path: Path) -> tuple[Question, ...]:
    """Reads questions.

    Every error names the file and the line, and so do errors of rows: a file that is missing, empty
    or not UTF-8, a row that is not JSON, lacks its prompt, has an unknown field or repeats
    another's prompt.

    Args:
        path: `.jsonl` with `prompt` and optionally the other fields of `Question` in every line,
            `.csv` with the same column names in its first line, or `.txt` with one prompt per line.
            A `note` may stand in a row, too; nothing reads it.

    Returns:
        The questions in file order; no two prompts or contents differ in case and spaces only.

    Raises:
        DataError: If the file or a row cannot be used.
    """
    return tuple(stream_questions(path))


def stream_questions(path: Path) -> Iterator[Question]:
    """Yields questions one by one as `read_questions` reads them; refuses what it refuses.

    Args:
        path: The file.

    Yields:
        Question: In file order.
    """
    seen: dict[bytes, str] = {}
    for row in prompt_rows(Path(path)):
        _require_known_fields(row)
        others = {key: _optional(row, key) for key in _OTHERS}
        others["content"] = others["content"] and normalised(others["content"])
        question = Question(_text(row, "prompt"), **others)
        if question.answer_to_clean and not question.clean:
            raise DataError(f"{row.place}: 'answer_to_clean' without 'clean': add the clean prompt")
        for prompt in question.prompts:
            _note(seen, prompt, row.place)
        yield question
    if not seen:
        raise DataError(f"{path} holds no prompt: expected at least one")


def read_contrast(path: Path) -> ContrastPrompts:
    """Reads prompts of both sides of a contrast.

    Args:
        path: `.jsonl` or `.csv`; every row has `positive` and `negative`, or `prompt` and a `label`
            that is `positive` or `negative`.

    Returns:
        Both sides in file order; no prompt is there twice.

    Raises:
        DataError: If the file or a row cannot be used, or one side is empty.
    """
    path = Path(path)
    sides: dict[str, list[str]] = {_POSITIVE: [], _NEGATIVE: []}
    seen: dict[bytes, str] = {}
    for row in prompt_rows(path):
        for side, prompt in _sides(row):
            _note(seen, prompt, row.place)
            sides[side].append(prompt)
    for side, prompts in sides.items():
        if not prompts:
            raise DataError(f"{path} holds no {side} prompt: a contrast needs both sides")
    return ContrastPrompts(tuple(sides[_POSITIVE]), tuple(sides[_NEGATIVE]))


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """Writes questions as JSON lines that `read_questions` reads back, atomically.

    Args:
        path: A `.jsonl` file.
        questions: At least one.

    Raises:
        DataError: If there is no question or the file is not named `.jsonl`.
    """
    if Path(path).suffix != ".jsonl" or not questions:
        raise DataError(f"cannot write {len(questions)} questions to {path}: name a .jsonl file")
    rows = ({k: v for k, v in asdict(one).items() if v is not None} for one in questions)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def require_disjoint(splits: Mapping[str, Sequence[Question]]) -> None:
    """Refuses splits that share a prompt or a content, case and spaces aside.

    Args:
        splits: Questions by split name.

    Raises:
        DataError: If two splits share one.
    """
    owner: dict[str, str] = {}
    for split, questions in splits.items():
        named = [("prompt", one) for question in questions for one in question.prompts]
        named += [("content", question.content) for question in questions if question.content]
        for what, one in named:
            first = owner.setdefault(f"{what} {normalised(one)}", split)
            if first != split:
                raise DataError(f"the {what} {one!r} is in {first} and in {split}: keep it in one")


def split_by_content(
    questions: Sequence[Question],
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> dict[str, tuple[Question, ...]]:
    """Splits questions into train, validation and test by a hash of what they say.

    Contents are ordered by the hash of seed and text and cut at the fractions. So the order of the
    file does not matter, and questions of one content stay together, as do those that give none
    and whose prompts differ in case and spaces only.

    Args:
        questions: At least one for every split with a positive fraction.
        fractions: Shares of train, validation and test, at least 0, together 1.
        seed: Which split.

    Returns:
        Questions by split name, each in the order given.

    Raises:
        ConfigError: If the fractions are negative or not 1 together.
        DataError: If a split with a positive fraction would be empty.
    """
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-9):
        raise ConfigError(f"fractions {fractions}: expected three that are at least 0, together 1")
    content_of = [question.content or normalised(question.prompt) for question in questions]
    order = sorted(set(content_of), key=lambda content: (_hash(f"{seed}/{content}"), content))
    first, second = (round(share * len(order)) for share in (fractions[0], sum(fractions[:2])))
    parts = (set(order[:first]), set(order[first:second]), set(order[second:]))
    for name, fraction, part in zip(SPLIT_NAMES, fractions, parts, strict=True):
        if fraction > 0 and not part:
            raise DataError(
                f"{len(order)} distinct contents leave {name} empty at a fraction of {fraction}: "
                "give more prompts"
            )
    return {
        name: tuple(q for q, one in zip(questions, content_of, strict=True) if one in part)
        for name, part in zip(SPLIT_NAMES, parts, strict=True)
    }


def normalised(prompt: str) -> str:
    """Returns a prompt without differences of case and spaces: what counts as the same prompt."""
    return " ".join(prompt.casefold().split())


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _note(seen: dict[bytes, str], prompt: str, place: str) -> None:
    """Remembers where a prompt stands, and refuses the second place."""
    # A digest, for the prompts of a large file may not fit into memory.
    text = normalised(prompt).encode(errors="surrogatepass")
    key = hashlib.blake2b(text, digest_size=16).digest()
    if key in seen:
        raise DataError(f"{place}: {prompt!r} is already at {seen[key]}: remove one of them")
    seen[key] = place


def _sides(row: PromptRow) -> list[tuple[str, str]]:
    if "label" not in row.values:
        return [(side, _text(row, side)) for side in (_POSITIVE, _NEGATIVE)]
    label = row.values["label"]
    if label not in (_POSITIVE, _NEGATIVE):
        raise DataError(f"{row.place}: label {label!r}, expected 'positive' or 'negative'")
    return [(label, _text(row, "prompt"))]


def _require_known_fields(row: PromptRow) -> None:
    """Refuses what nobody reads: a misspelt field would leave its default in force unnoticed."""
    unknown = [key for key in row.values if key not in ROW_FIELDS]
    if not unknown or "prompt" not in row.values:
        # Without a prompt that is what has to be said first.
        return
    near = difflib.get_close_matches(unknown[0], ROW_FIELDS, n=1, cutoff=0.75)
    meant = f", did you mean {near[0]!r}?" if near else "."
    raise DataError(
        f"{row.place}: unknown field {unknown[0]!r}{meant} A row has 'prompt' and may have "
        f"{', '.join(ROW_FIELDS[1:])}; what is yours alone goes into 'note'"
    )


def _text(row: PromptRow, key: str) -> str:
    if key not in row.values:
        found = ", ".join(map(repr, row.values)) or "nothing"
        raise DataError(f"{row.place}: found {found}, expected {key!r}: add it")
    value = row.values[key]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.place}: {key!r} is {value!r}, expected a text that is not blank")
    return value


def _optional(row: PromptRow, key: str) -> str | None:
    return None if row.values.get(key) in (None, "") else _text(row, key)
