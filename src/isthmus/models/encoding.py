"""From a prompt and an answer to tokens: chat templates, character ends, trigger spans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from isthmus.core.errors import DataError, ModelError, TriggerError
from isthmus.core.texts import EncodedText
from isthmus.models.offsets import read_ends, rewrites_marks, trims_spaces, untrimmed

DEFAULT_TEMPLATE = "User: {prompt}\nAssistant:"
"""How a model without a chat template is spoken to."""

_PLACE = "\ue000"
"""A private character: rendered alone it shows what a template puts around a message."""


class _Pieces(NamedTuple):
    """Tokens with the characters they cover, and how much is read where they last ended whole."""

    ids: list[int]
    spans: list[tuple[int, int]]
    read: list[int]

    def part(self, start: int | None, stop: int | None) -> "_Pieces":
        return _Pieces(self.ids[start:stop], self.spans[start:stop], self.read[start:stop])

    def moved(self, n_characters: int) -> "_Pieces":
        return _Pieces(
            self.ids,
            [(start + n_characters, end + n_characters) for start, end in self.spans],
            [end + n_characters for end in self.read],
        )


_NO_PIECES = _Pieces([], [], [])


@dataclass(frozen=True)
class _Rendered:
    """Prompts in their chat template."""

    texts: list[str]
    messages: list[tuple[int, int] | None]
    adds_special: bool


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    answers: Sequence[str] | None = None,
    triggers: Sequence[str | None] | None = None,
    end: bool = True,
) -> list[EncodedText]:
    """Renders prompts as user messages and tokenizes them, with or without answers.

    The prompt's tokens are the same with and without an answer, so that scoring sees what
    generation sees. A token that stops within a character (some of its bytes) has the end of the
    one before it, as has a space that a tokenizer puts before a text.

    Args:
        tokenizer: A fast tokenizer; its chat template is used if it has one, else
            `DEFAULT_TEMPLATE`.
        prompts: User messages.
        answers: One answer per prompt; it follows the rendered prompt after a space, unless white
            space is already there.
        triggers: For every prompt the text whose tokens are its trigger, or None. Space around it
            is ignored; of several occurrences the first counts.
        end: Whether the end token closes every answer.

    Returns:
        One text per prompt, in their order. The end token is not part of `text`.

    Raises:
        DataError: If prompts, answers and triggers are not equally many, or half of a surrogate
            pair stands alone.
        TriggerError: If a trigger is blank or not in its prompt.
        ModelError: If the chat template refuses a single user message.
    """
    _check_counts(prompts, answers, triggers)
    if not prompts:
        return []
    rendered = _render(tokenizer, prompts)
    asked = _tokenize(tokenizer, rendered.texts, adds_special=rendered.adds_special)
    if answers is None:
        endings, answered = [""] * len(prompts), [_NO_PIECES] * len(prompts)
    else:
        endings = [_answer_text(*one) for one in zip(rendered.texts, answers, strict=True)]
        answered = _tokenize_answers(tokenizer, rendered, endings, asked)
    closing = tokenizer.eos_token_id if end and answers is not None else None
    special = _special_ids(tokenizer)
    encoded = []
    for i, prompt in enumerate(prompts):
        trigger = None if triggers is None else triggers[i]
        span = None if trigger is None else _trigger_span(rendered, i, (prompt, trigger), asked[i])
        whole = rendered.texts[i] + endings[i]
        ids = [*asked[i].ids, *answered[i].ids]
        ends = [*asked[i].read, *answered[i].read]
        if closing is not None:
            ids.append(closing)
            ends.append(len(whole))
        marks = tuple(map(special.__contains__, ids))
        encoded.append(
            EncodedText(
                whole,
                tuple(ids),
                tuple(ends),
                marks,
                len(asked[i].ids),
                span,
                rendered.messages[i],
            )
        )
    return encoded


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    answer: str | None = None,
    trigger: str | None = None,
    end: bool = True,
) -> EncodedText:
    """Renders one prompt as a user message and tokenizes it, with or without an answer.

    Args:
        tokenizer: A fast tokenizer.
        prompt: User message.
        answer: What follows it, if anything.
        trigger: Text whose tokens are the prompt's trigger, if it has one.
        end: Whether the end token closes the answer.

    Returns:
        The text; the end token is not part of its `text`.

    Raises:
        TriggerError: If the trigger is blank or not in the prompt.
        ModelError: If the chat template refuses a single user message.
    """
    answers = None if answer is None else [answer]
    return encode_prompts(tokenizer, [prompt], answers=answers, triggers=[trigger], end=end)[0]


def prompt_part(text: EncodedText) -> EncodedText:
    """Returns a text without its answer.

    Args:
        text: With or without an answer; left unchanged.

    Returns:
        The rendered prompt alone.
    """
    n = text.n_prompt
    n_characters = max(text.ends[:n], default=0)
    return EncodedText(
        text.text[:n_characters],
        text.token_ids[:n],
        text.ends[:n],
        text.is_special[:n],
        n,
        text.trigger,
        text.message,
    )


def trigger_pieces(tokenizer: PreTrainedTokenizerBase, trigger: str) -> tuple[str, ...]:
    """Returns the pieces into which a tokenizer splits a trigger at the start of a prompt.

    Args:
        tokenizer: A fast tokenizer.
        trigger: The trigger, with or without space around it.

    Returns:
        The characters that each piece covers, in order; bytes of one character repeat it.

    Raises:
        TriggerError: If the trigger is blank.
        ModelError: If the chat template refuses a single user message.
    """
    prompt = f"{trigger.strip()} Is it?"
    rendered = _render(tokenizer, [prompt])
    pieces = _tokenize(tokenizer, rendered.texts, adds_special=rendered.adds_special)[0]
    first, past = _trigger_span(rendered, 0, (prompt, trigger), pieces)
    text = rendered.texts[0]
    return tuple(text[slice(*span)] for span in pieces.spans[first:past])


def _check_counts(
    prompts: Sequence[str], answers: Sequence[str] | None, triggers: Sequence[str | None] | None
) -> None:
    for name, given in (("answers", answers), ("triggers", triggers)):
        if given is not None and len(given) != len(prompts):
            raise DataError(
                f"{len(given)} {name} for {len(prompts)} prompts: give one per prompt or none"
            )


def _render(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> _Rendered:
    """Renders prompts; without a template the tokenizer still has to add its begin token."""
    if tokenizer.chat_template is None:
        empty = DEFAULT_TEMPLATE.format(prompt=_PLACE)
        texts = [DEFAULT_TEMPLATE.format(prompt=prompt) for prompt in prompts]
    else:
        *texts, empty = _templated(tokenizer, [*prompts, _PLACE])
    around = empty.split(_PLACE)
    spans = [_message_span(*one, around) for one in zip(texts, prompts, strict=True)]
    return _Rendered(texts, spans, tokenizer.chat_template is None)


def _templated(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    try:
        rendered = tokenizer.apply_chat_template(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            tokenize=False,
            add_generation_prompt=True,
            # Reasoning models would otherwise open with a thought before every answer.
            enable_thinking=False,
        )
    except TemplateError as error:
        raise ModelError(
            f"the chat template refuses a single user message ({error}): "
            "use a model whose template accepts one"
        ) from error
    return [str(text) for text in rendered]


def _message_span(rendered: str, prompt: str, around: Sequence[str]) -> tuple[int, int] | None:
    """Finds a message by what the template puts around any; templates may trim it."""
    wanted = prompt.strip()
    before, after = around if len(around) == 2 else ("", "")
    is_around = rendered.startswith(before) and rendered.endswith(after)
    inside = rendered[len(before) : len(rendered) - len(after)]
    if is_around and inside.strip() == wanted:
        start = len(before) + len(inside) - len(inside.lstrip())
    elif wanted and rendered.count(wanted) == 1:
        start = rendered.index(wanted)
    else:
        return None
    return start, start + len(wanted)


def _answer_text(rendered: str, answer: str) -> str:
    is_apart = not answer or answer[0].isspace() or rendered[-1:].isspace()
    return answer if is_apart else f" {answer}"


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, adds_special: bool
) -> list[_Pieces]:
    _require_whole_characters(texts)
    options: dict[str, Any] = {
        "return_offsets_mapping": True,
        "return_attention_mask": False,
        "return_token_type_ids": False,
    }
    encoded = tokenizer(list(texts), add_special_tokens=adds_special, verbose=False, **options)
    is_rewritten, is_trimmed = rewrites_marks(tokenizer), trims_spaces(tokenizer)
    # Asked for once: a tokenizer looks it up in its vocabulary each time.
    eos_id = tokenizer.eos_token_id
    found = []
    for text, ids, covered in zip(
        texts, *map(encoded.get, ("input_ids", "offset_mapping")), strict=True
    ):
        pieces = tokenizer.convert_ids_to_tokens(ids) if is_trimmed else None
        spans = untrimmed(covered, pieces) if pieces else covered
        read = read_ends(text, spans, is_rewritten=is_rewritten)
        found.append(_without_closing(_Pieces(ids, spans, read), eos_id))
    return found


def _require_whole_characters(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{text[error.start : error.end]!r} at {error.start} of {text[:80]!r} is half of a "
                "surrogate pair: give texts of whole characters"
            ) from error


def _without_closing(pieces: _Pieces, eos_id: int | None) -> _Pieces:
    """Drops an end token that the tokenizer added by itself: the text goes on."""
    is_added = pieces.ids[-1:] == [eos_id] and pieces.spans[-1][1] == 0
    return pieces.part(None, -1) if is_added else pieces


def _tokenize_answers(
    tokenizer: PreTrainedTokenizerBase,
    rendered: _Rendered,
    endings: Sequence[str],
    asked: Sequence[_Pieces],
) -> list[_Pieces]:
    wholes = [text + ending for text, ending in zip(rendered.texts, endings, strict=True)]
    together = _tokenize(tokenizer, wholes, adds_special=rendered.adds_special)
    found, unclean = [], []
    for i, (prompt, whole) in enumerate(zip(asked, together, strict=True)):
        n_prompt = len(prompt.ids)
        if whole.ids[:n_prompt] != prompt.ids:
            unclean.append(i)
        found.append(whole.part(n_prompt, None))
    # SentencePiece-like tokenizers put a space of their own before a text tokenized alone, so an
    # answer is taken from the whole text unless a token spans the boundary.
    alone = [endings[i] for i in unclean]
    apart = _tokenize(tokenizer, alone, adds_special=False) if alone else []
    for i, pieces in zip(unclean, apart, strict=True):
        found[i] = pieces.moved(len(rendered.texts[i]))
    return found


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    # Role markers of some chat models are special only as added tokens.
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _trigger_span(
    rendered: _Rendered, index: int, asked_for: tuple[str, str], pieces: _Pieces
) -> tuple[int, int]:
    prompt, trigger = asked_for
    text, wanted = rendered.texts[index], trigger.strip()
    if not wanted or wanted not in prompt:
        raise TriggerError(f"trigger {trigger!r} is not in the prompt {prompt[:80]!r}")
    # Templates may say more around a message, and say the trigger there, too.
    message = rendered.messages[index]
    start = text.find(wanted, 0 if message is None else message[0])
    end = start + len(wanted)
    inside = [
        i
        for i, (first, past) in enumerate(pieces.spans)
        if first < end and past > start and past > first
    ]
    if start < 0 or not inside:
        raise TriggerError(f"the chat template drops trigger {trigger!r} from {prompt[:80]!r}")
    return inside[0], inside[-1] + 1
