"""The bench: scores arms on one target and one split, with the untouched model measured once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.errors import ConfigError, NoEditError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.organisms import Turn
from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.recovery import AnswerLosses
from isthmus.interventions.per_row import PerRow
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.changes import BenignChange
from isthmus.models.encoding import prompt_part
from isthmus.models.generation import GenerationResult, completion_text, generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs, answer_nll
from isthmus.workflows.answer_budget import require_room, tokens_to_marker
from isthmus.workflows.arms import Arm, Way
from isthmus.workflows.cell_packing import needs_whole_batches
from isthmus.workflows.cell_passes import CellPasses
from isthmus.workflows.config import RunConfig
from isthmus.workflows.twins import EncodedTwins, encode_twins

_MOST_KEPT = 2**25
"""Most log-probabilities of the untouched model that are kept rather than computed again."""

Losses = Float[np.ndarray, " prompt"]
Turned = Bool[np.ndarray, " prompt"]


@dataclass(frozen=True)
class ArmScores:
    """Losses under one arm, one per question.

    Attributes:
        removal: Clean answer under the bad trigger.
        induction: Bad answer under the clean trigger.
        n_edited: Positions edited in both.
        removal_turned: Whether the clean answer is likelier than the bad one where the two part;
            None for an arm that edits nothing.
        induction_turned: Whether the bad answer is.
    """

    removal: AnswerLosses
    induction: AnswerLosses
    n_edited: int
    removal_turned: Turned | None = None
    induction_turned: Turned | None = None

    @classmethod
    def joined(cls, parts: "Sequence[ArmScores]") -> "ArmScores":
        """Returns the losses on several sets of questions behind each other."""
        return cls(
            AnswerLosses.joined([one.removal for one in parts]),
            AnswerLosses.joined([one.induction for one in parts]),
            sum(one.n_edited for one in parts),
        )


@dataclass(frozen=True)
class Completions:
    """Greedy completions under one arm.

    Attributes:
        texts: One per prompt.
        n_edited: Positions edited.
    """

    texts: tuple[str, ...]
    n_edited: int


class Bench:
    """Measures arms on the twins of one split.

    Args:
        lm: The target.
        twins: The split's questions.
        config: Batch size, length of completions.
        encoded: The questions as the target reads them; encoded here when not given.
        passes: Runs the target under edits; benches of one target may share it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        twins: Sequence[TwinPrompt],
        config: RunConfig,
        encoded: EncodedTwins | None = None,
        passes: CellPasses | None = None,
    ) -> None:
        self.lm = lm
        self.twins = tuple(twins)
        self.config = config
        self.encoded = encode_twins(lm, twins) if encoded is None else encoded
        self._passes = passes or CellPasses(lm, config.batch_size)
        self._expected: tuple[tuple[Site, ...], tuple[str, ...]] | None = None
        self._latest_change: tuple[Arm, BenignChange] | None = None

    def expect(self, sites: Sequence[Site], positions: Sequence[str]) -> None:
        """Says where arms will edit: what is read for them serves the untouched target, too.

        Args:
            sites: Where they edit.
            positions: Which tokens.
        """
        self._expected = tuple(sites), tuple(positions)

    def prepare(self, sites: Sequence[Site], positions: Sequence[str]) -> None:
        """Computes what arms at some places share: the untouched target, and states before them.

        Args:
            sites: Where they edit.
            positions: Which tokens.
        """
        self.expect(sites, positions)
        self._read_as_expected(self.encoded.benign)
        _ = self.untouched, self._benign_logprobs

    def _read_as_expected(self, texts: Sequence[EncodedText]) -> bool:
        """Reads texts for the arms that are expected; returns False where none are."""
        if self._expected is None:
            return False
        sites, positions = self._expected
        for where in positions:
            self._passes.prepare(texts, parse_positions(where), sites)
        return True

    def _nll(self, texts: Sequence[EncodedText]) -> Losses:
        encoded = self.encoded
        is_edited = texts is encoded.triggered or texts is encoded.clean_bad
        if is_edited and self._read_as_expected(texts):
            return self._passes.unedited_nll(texts).double().numpy()
        return answer_nll(self.lm, texts, batch_size=self.config.batch_size).nll.double().numpy()

    @cached_property
    def untouched(self) -> dict[str, Losses]:
        """Losses of the untouched model: clean and bad answers under both triggers."""
        return {
            "clean_given_bad": self._nll(self.encoded.triggered),
            "clean_given_clean": self._nll(self.encoded.clean),
            "bad_given_clean": self._nll(self.encoded.clean_bad),
            "bad_given_bad": self._nll(self.encoded.triggered_bad),
        }

    def _read(self, arm: Arm, way: Way) -> Sequence[EncodedText]:
        """Returns what the target reads under an arm."""
        if arm.condition == "prompt_only":
            return self.encoded.overridden if way == "removal" else self.encoded.overridden_bad
        if arm.condition == "clean":
            return self.encoded.clean if way == "removal" else self.encoded.triggered_bad
        return self.encoded.triggered if way == "removal" else self.encoded.clean_bad

    def _edited(self, arms: Sequence[Arm], way: Way) -> list[tuple[Losses, int, Turned | None]]:
        """Returns losses, edited positions and whether the answer has turned, arm by arm."""
        found: list[tuple[Losses, int, Turned | None]] = [(np.empty(0), 0, None)] * len(arms)
        interventions = {
            index: one for index, arm in enumerate(arms) if (one := arm.intervention(way))
        }
        for index, arm in enumerate(arms):
            if index not in interventions:
                found[index] = self._nll(self._read(arm, way)), 0, None
        rivals = self.encoded.triggered_bad if way == "removal" else self.encoded.clean
        texts = self._read(Arm("native"), way)
        scored = self._passes.nll(texts, list(interventions.values()), rivals)
        for index, result in zip(interventions, scored, strict=True):
            if not result.n_edited:
                raise NoEditError(
                    f"the {arms[index].condition} intervention at {arms[index].site}, positions "
                    f"{arms[index].positions}, edited nothing: check that the prompts hold the "
                    "trigger"
                )
            turned = None if result.turned is None else result.turned.numpy()
            found[index] = result.nll.double().numpy(), result.n_edited, turned
        return found

    def score(self, arm: Arm) -> ArmScores:
        """Measures how much of the behaviour an arm turns off, and on.

        Args:
            arm: What is done to the target.

        Returns:
            Losses before, without and under the edit, question by question.

        Raises:
            NoEditError: If the arm should edit and edited nothing.
        """
        return self.score_all([arm])[0]

    def score_all(self, arms: Sequence[Arm]) -> list[ArmScores]:
        """Measures several arms, side by side in one pass where they share much.

        Args:
            arms: What is done to the target.

        Returns:
            What `score` gives, in the order of the arms.

        Raises:
            NoEditError: If an arm should edit and edited nothing.
        """
        removals, inductions = self._edited(arms, "removal"), self._edited(arms, "induction")
        base, contents = self.untouched, tuple(twin.content for twin in self.twins)
        return [
            ArmScores(
                AnswerLosses(base["clean_given_bad"], base["clean_given_clean"], removed, contents),
                AnswerLosses(base["bad_given_clean"], base["bad_given_bad"], induced, contents),
                n_removed + n_induced,
                off,
                on,
            )
            for (removed, n_removed, off), (induced, n_induced, on) in zip(
                removals, inductions, strict=True
            )
        ]

    def damage(self, arm: Arm) -> Losses:
        """Returns the divergence from the untouched model on benign prompts, in nats per token."""
        if arm.intervention("removal") is None:
            return np.zeros(len(self.encoded.benign))
        return self.benign_change(arm).divergence.double().numpy()

    def benign_change(self, arm: Arm) -> BenignChange:
        """Measures what an arm that edits does to benign prompts: divergence and right answers."""
        # Its divergence is asked for first, then which answers stayed.
        if self._latest_change is None or self._latest_change[0] is not arm:
            self._latest_change = arm, self.benign_changes([arm])[0]
        return self._latest_change[1]

    def benign_changes(self, arms: Sequence[Arm]) -> list[BenignChange]:
        """Measures what several arms do to benign prompts, as `benign_change` measures one.

        Args:
            arms: What is done to the target.

        Returns:
            Divergence and right answers, in the order of the arms.

        Raises:
            ConfigError: If one of them edits nothing.
        """
        interventions = [one for arm in arms if (one := arm.intervention("removal"))]
        if len(interventions) < len(arms):
            raise ConfigError("an arm that edits nothing changes nothing on benign prompts")
        return self._passes.changes(self.encoded.benign, interventions, self._benign_logprobs)

    @cached_property
    def _benign_logprobs(self) -> list[Float[Tensor, "token vocab"]] | None:
        """What the untouched model predicts on benign prompts, when it is small enough to keep."""
        n_answer = sum(len(text) - text.n_prompt for text in self.encoded.benign)
        if n_answer * len(self.lm.tokenizer) > _MOST_KEPT:
            return None
        if self._read_as_expected(self.encoded.benign):
            return self._passes.unedited_logprobs(self.encoded.benign)
        return answer_logprobs(self.lm, self.encoded.benign, batch_size=self.config.batch_size)

    def complete(self, arm: Arm) -> Completions:
        """Lets the target answer the triggered prompts (clean ones for `clean`) under an arm."""
        if arm.condition == "none":
            return self._untouched_completions
        texts = {"clean": self.encoded.clean, "prompt_only": self.encoded.overridden}.get(
            arm.condition, self.encoded.triggered
        )
        return self._generate(texts, arm)

    def complete_all(self, arms: Sequence[Arm]) -> list[Completions]:
        """Lets the target answer under several arms, side by side in one batch where they can.

        Args:
            arms: What is done to the target.

        Returns:
            What `complete` gives, in the order of the arms.
        """
        wanted = {
            number: one
            for number, arm in enumerate(arms)
            if (one := arm.intervention("removal")) and not needs_whole_batches(one)
        }
        found = {n: self.complete(arm) for n, arm in enumerate(arms) if n not in wanted}
        if wanted:
            n, texts = len(self.twins), list(self.encoded.triggered)
            rows = PerRow(tuple(one for one in wanted.values() for _ in range(n)))
            said = self._written(texts * len(wanted), rows.place)
            for k, number in enumerate(wanted):
                own = slice(k * n, (k + 1) * n)
                found[number] = Completions(said.completions[own], sum(said.n_edited_by_text[own]))
        return [found[number] for number in range(len(arms))]

    @cached_property
    def _untouched_completions(self) -> Completions:
        return self._generate(self.encoded.triggered, Arm("none"))

    def complete_benign(self, arm: Arm) -> tuple[str, ...]:
        """Lets the target answer the benign prompts under an arm.

        What it answers exactly as expected is known from the likelihoods and not generated again.
        """
        return self._untouched_benign if arm.condition == "none" else self._said_to_benign(arm)

    @cached_property
    def _untouched_benign(self) -> tuple[str, ...]:
        return self._said_to_benign(Arm("none"))

    def _said_to_benign(self, arm: Arm) -> tuple[str, ...]:
        texts = self.encoded.benign
        said = {
            i: completion_text(self.lm, text.token_ids[text.n_prompt :])
            for i, (text, is_right) in enumerate(zip(texts, self._benign_right(arm), strict=True))
            if is_right and self._ends_in_time(text)
        }
        left = [i for i in range(len(texts)) if i not in said]
        if left:
            written = self._generate([texts[i] for i in left], arm).texts
            said |= dict(zip(left, written, strict=True))
        return tuple(said[i] for i in range(len(texts)))

    def _ends_in_time(self, text: EncodedText) -> bool:
        is_ended = text.token_ids[-1] in self.lm.eos_ids
        return is_ended and len(text) - text.n_prompt <= self.n_new_tokens

    def _benign_right(self, arm: Arm) -> Sequence[bool]:
        """Says of every benign prompt whether the expected answer is the greedy one."""
        if arm.intervention("removal") is not None:
            return self.benign_change(arm).is_right.tolist()
        if self._benign_logprobs is None:
            return [False] * len(self.encoded.benign)
        return [
            logprobs.argmax(-1).tolist() == list(text.token_ids[text.n_prompt :])
            for text, logprobs in zip(self.encoded.benign, self._benign_logprobs, strict=True)
        ]

    def _generate(self, texts: Sequence[EncodedText], arm: Arm) -> Completions:
        done = arm.intervention("removal")
        result = self._written(texts, no_edits if done is None else done.place)
        return Completions(result.completions, result.n_edited)

    def _written(self, texts: Sequence[EncodedText], edits: PlaceEdits) -> GenerationResult:
        return generate_greedy(
            self.lm,
            [prompt_part(text) for text in texts],
            max_new_tokens=self.n_new_tokens,
            edits=edits,
            batch_size=4 * self.config.batch_size,
        )

    @cached_property
    def n_new_tokens(self) -> int:
        """Most tokens of a completion: what the run says, else the longest answer."""
        if self.config.max_new_tokens is not None:
            return self.config.max_new_tokens
        every = [*self.encoded.triggered, *self.encoded.clean]
        if self.config.task != "backdoor":
            # A register or a refusal is recognised by its end, too; a backdoor by its marker.
            every += [*self.encoded.triggered_bad, *self.encoded.clean_bad]
        return max(self._n_to_marker, *(len(text) - text.n_prompt for text in every))

    @cached_property
    def _n_to_marker(self) -> int:
        """As `tokens_to_marker`; 0 for tasks that are not judged by a marker."""
        if self.config.task != "backdoor":
            return 0
        return tokens_to_marker(self.lm, self._bad_ids, self.config.marker)

    @property
    def _bad_ids(self) -> list[tuple[int, ...]]:
        return [text.token_ids[text.n_prompt :] for text in self.encoded.triggered_bad]

    def require_room(self) -> None:
        """Refuses completions in which the behaviour could never be seen.

        Raises:
            ConfigError: If they end before a backdoor's marker does in the bad answer, or before
                another task's rules recognise the behaviour in any.
        """
        turns = [twin.triggered_turn for twin in self.twins]
        require_room(self.lm, self.config, turns, self._bad_ids)

    def asked(self, arm: Arm) -> list[Turn]:
        """Returns what `complete` asks under an arm, with the answers without the behaviour."""
        if arm.condition == "clean":
            return [twin.clean_turn for twin in self.twins]
        return [twin.triggered_turn for twin in self.twins]

    @property
    def benign_turns(self) -> tuple[Turn, ...]:
        """What `complete_benign` asks, with the right answers."""
        return self.encoded.benign_turns
