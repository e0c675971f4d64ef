"""`transfer-switch`: what a trigger changes in one model becomes a switch of another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from isthmus.carrying.switch_files import KIND, save_switch
from isthmus.carrying.switches import Switch
from isthmus.core.artifacts import require_free
from isthmus.core.certificate import Certificate, CertifiedNumber, Passage
from isthmus.core.errors import ConfigError, TriggerError
from isthmus.core.options import require_word
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import made_with
from isthmus.core.sites import GivenSites
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER
from isthmus.evaluation.intervals import Interval, mean_interval, rate_interval
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.encoding import encode_prompts, prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.models.scoring import answer_logprobs
from isthmus.workflows.certifying import told_corpus
from isthmus.workflows.config import Dtype
from isthmus.workflows.learn_switch import SwitchPrompts, split_prompts, world_questions
from isthmus.workflows.switch_distilling import (
    DistillSettings,
    SwitchReading,
    edits_through,
    fit_switch_maps,
    prompts_of_change,
    read_switch,
    switch_map_quality,
)
from isthmus.workflows.twin_reading import TwinReadingSettings, read_twins, sites_read

Answers = Literal["clean", "bad"]

_DAMAGE = ("kl_plain",)
_N_WORLD = {"train": 120, "validation": 24, "test": 40}


def transfer_switch(
    source: str | Path | LanguageModel,
    target: str | Path | LanguageModel,
    prompts: str | Path | Sequence[str] | None = None,
    *,
    bad_trigger: str = BAD_TRIGGER,
    clean_trigger: str = CLEAN_TRIGGER,
    to: Answers = "clean",
    rank: int | None = 16,
    sites: GivenSites | None = None,
    max_new_tokens: int = 64,
    out: str | Path | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Switch:
    """Carries what a trigger changes in one model to another, as a switch of the other.

    The source's states with and without the trigger are mapped to the target, and what differs is
    refitted as low-rank functions of the target's own states. While the switch is on, the target
    answers prompts with one trigger as it answers them with the other. Both models must know the
    triggers; the target's answers are not needed.

    Args:
        source: Model in which the triggers are understood: hub name, folder, `organism:NAME`, or
            loaded.
        target: Model that will carry the switch.
        prompts: Prompts *without* a trigger: JSONL with `prompt`, one per line, or the prompts; at
            least 20. Questions of the organisms' world when not given.
        bad_trigger: Put before a prompt, it brings the behaviour about.
        clean_trigger: Put there instead, it does not; as long in the source's tokens.
        to: What the target answers while the switch is on: as after the `clean` trigger though the
            bad one stands there, or the other way round (`bad`).
        rank: Rank of the edit at every site; full maps when 0 or None.
        sites: Where it acts; every block's output when None. At `resid_pre[0]` an edit can put
            one trigger's embedding in the place of the other's.
        max_new_tokens: Length of the answers that it is fitted and measured on.
        out: Folder to write; nothing is written when not given.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Texts per forward pass.
        seed: Which prompts go where.
        progress: Who shows progress.

    Returns:
        The switch with a certificate and, in `quality`, its `agreement` with the target's own
        answers after the other trigger and its `kl` to them on held-out prompts, beside those
        without it, and its `kl_plain` on prompts without a trigger.

    Raises:
        IsthmusError: If a model, a site, the prompts or the triggers cannot be used.
    """
    _require_asked(rank, to, (bad_trigger, clean_trigger))
    require_free(out, KIND)
    shown = progress or SilentProgress()
    source_lm, target_lm = (
        one
        if isinstance(one, LanguageModel)
        else load_language_model(one, dtype=dtype, device=device)
        for one in (source, target)
    )
    given = _world(seed) if prompts is None else split_prompts(prompts, seed)
    _require_plain(given, (bad_trigger, clean_trigger))
    triggers = (bad_trigger, clean_trigger) if to == "clean" else (clean_trigger, bad_trigger)
    reading = TwinReadingSettings(
        target_lm.sites("all" if sites is None else sites), triggers, max_new_tokens, batch_size
    )
    settings = DistillSettings(rank or None, reading=reading, seed=seed)
    switch = _measured_switch((source_lm, target_lm), given, settings, shown)
    if out is not None:
        save_switch(Path(out), switch)
    return switch


def _measured_switch(
    models: tuple[LanguageModel, LanguageModel],
    given: SwitchPrompts,
    settings: DistillSettings,
    progress: Progress,
) -> Switch:
    """Carries what the triggers of `settings.reading` change, and measures the switch it makes."""
    source, target = models
    reading = settings.reading
    triggers = reading.triggers or ("", "")
    fit, choose, held_out = (
        prompts_of_change(
            [triggers[0] + one for one in part], [triggers[1] + one for one in part], part
        )
        for part in (given.train, given.selection, given.held_out)
    )
    read = read_switch(models, (fit, choose), reading)
    maps = fit_switch_maps(read, settings, progress)
    provenance = {
        "source": source.identity.to_json(),
        "map": settings.map_method,
        "triggers": list(triggers),
        "n_prompts": [len(part) for part in (given.train, given.selection, given.held_out)],
        "rank": settings.rank,
        "seed": settings.seed,
        **made_with(),
    }
    edits = edits_through(maps, read, settings.rank, progress)
    ends = (target.identity, target.identity)
    switch = Switch(edits, *ends, "base", "distilled", provenance=provenance)
    asked = _Asked(target, triggers, reading.max_new_tokens, reading.batch_size)
    measured = asked.measured(switch, given.held_out)
    quality = {name: one.value for name, one in measured.items()}
    others = read_twins(models, held_out, reading)
    return replace(
        switch,
        quality=quality | {"n_held_out": float(len(given.held_out))},
        certificate=_certificate(
            switch, read, measured, switch_map_quality(maps, read.states[0].n, others)
        ),
    )


def _certificate(
    switch: Switch,
    read: SwitchReading,
    measured: Mapping[str, Interval],
    map_quality: Mapping[str, float],
) -> Certificate:
    n = switch.provenance["n_prompts"][2]
    numbers = {
        name: CertifiedNumber(one.value, one.low, one.high, n) for name, one in measured.items()
    }
    damage = {name: numbers.pop(name) for name in _DAMAGE}
    passage = Passage(
        read.source.identity,
        read.target.identity,
        tuple(map(str, sites_read(read.source))),
        ", ".join(map(str, switch.sites)),
        switch.provenance["map"],
        map_quality,
        told_corpus([text for part in read.parts for text in part.texts], "character_end"),
        switch.provenance["seed"],
    )
    return Certificate(
        **{name: getattr(passage, name) for name in vars(passage)},
        setting={"positions": switch.positions, "triggers": switch.provenance["triggers"]},
        behaviour=numbers,
        damage=damage,
        norms={"vectors": [norm for one in switch.norms_as_written.values() for norm in one]},
        **made_with(),
        way=(passage,),
    )


def _require_asked(rank: int | None, to: str, triggers: tuple[str, str]) -> None:
    """Refuses what no switch can be made of, before a model is loaded."""
    if rank is not None and rank < 0:
        raise ConfigError(f"rank {rank}: give at least 1, or 0 for full maps")
    require_word("to", to, get_args(Answers))
    bad, clean = triggers
    if bad.startswith(clean) or clean.startswith(bad):
        raise ConfigError(
            f"triggers {bad!r} and {clean!r} cannot be told apart: give two of which neither "
            "begins with the other"
        )


def _require_plain(given: SwitchPrompts, triggers: tuple[str, str]) -> None:
    """Refuses prompts that have a trigger already: they would get another before it."""
    for prompt in (*given.train, *given.selection, *given.held_out):
        if prompt.startswith(triggers):
            raise TriggerError(
                f"the prompt {prompt[:60]!r} begins with a trigger already: give prompts without, "
                "they get both"
            )


def _world(seed: int) -> SwitchPrompts:
    return SwitchPrompts(
        *(tuple(q.prompt for q in world_questions(s, n, seed)) for s, n in _N_WORLD.items())
    )


@dataclass(frozen=True)
class _Asked:
    """The target, asked with the trigger that is switched and with the other."""

    lm: LanguageModel
    triggers: tuple[str, str]
    max_new_tokens: int
    batch_size: int

    def measured(self, switch: Switch, prompts: Sequence[str]) -> dict[str, Interval]:
        """Returns agreement and divergence with the switch and without it, each as a mean."""
        switched, others = ([trigger + one for one in prompts] for trigger in self.triggers)
        wanted, plain = self._answers(others), self._answers(prompts)
        on = switch.intervention().place
        return {
            "agreement": self._agreement(switched, wanted, on),
            "agreement_without": self._agreement(switched, wanted, no_edits),
            "kl": self._divergence((others, switched), wanted, on),
            "kl_without": self._divergence((others, switched), wanted, no_edits),
            "kl_plain": self._divergence((prompts, prompts), plain, on),
        }

    def _answers(self, prompts: Sequence[str], edits: PlaceEdits = no_edits) -> tuple[str, ...]:
        asked = [prompt_part(text) for text in encode_prompts(self.lm.tokenizer, prompts)]
        return generate_greedy(
            self.lm,
            asked,
            max_new_tokens=self.max_new_tokens,
            edits=edits,
            batch_size=2 * self.batch_size,
        ).completions

    def _agreement(
        self, prompts: Sequence[str], wanted: Sequence[str], edits: PlaceEdits
    ) -> Interval:
        pairs = zip(self._answers(prompts, edits), wanted, strict=True)
        return rate_interval([one == other for one, other in pairs])

    def _divergence(
        self,
        prompts: tuple[Sequence[str], Sequence[str]],
        answers: Sequence[str],
        edits: PlaceEdits,
    ) -> Interval:
        """Returns KL(untouched on the first prompts ‖ edited on the second), nats per token."""
        sides = [encode_prompts(self.lm.tokenizer, side, answers=answers) for side in prompts]
        each: list[Tensor] = []
        # Distributions over a whole vocabulary: no more of them at once than a pass makes.
        for first in range(0, len(answers), self.batch_size):
            texts = [side[first : first + self.batch_size] for side in sides]
            untouched = answer_logprobs(self.lm, texts[0], batch_size=self.batch_size)
            edited = answer_logprobs(self.lm, texts[1], edits=edits, batch_size=self.batch_size)
            pairs = zip(untouched, edited, strict=True)
            each += [(p.exp() * (p - q)).sum(-1).mean() for p, q in pairs]
        return mean_interval(torch.stack(each).double().numpy())
