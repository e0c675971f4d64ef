"""The one configuration type: what `run` reads, with the names that every verb uses."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from isthmus.core.errors import ConfigError, StrengthError
from isthmus.core.options import TaskName
from isthmus.data.organisms import BAD_ANSWER, BAD_TRIGGER, CLEAN_TRIGGER
from isthmus.evaluation.judges import EndpointJudge
from isthmus.interventions.positions import parse_positions
from isthmus.workflows.judge_settings import EndpointSettings, GuardSettings

MapMethod = Literal[
    "ridge",
    "ridge_one_layer",
    "ridge_gcv",
    "ridge_standardised",
    "ridge_clipped",
    "ridge_trimmed",
    "ridge_huber",
    "ridge_contrast",
    "procrustes",
    "procrustes_whitened",
    "reduced_rank",
    "pca_whitened",
    "bidirectional",
    "kernel_ridge",
    "autoencoder",
    "autoencoder_well_trained",
    "autoencoder_residual",
    "sgd_affine",
    "relative",
    "unembedding_rows",
    "identity",
    "auto",
]
EditKind = Literal["add", "add_keeping_norm", "ablate", "set_coordinate", "replace"]
Pairing = Literal["character_end", "chunk_boundary", "span_pool", "index", "last"]
DirectionMethodName = Literal["mean_difference", "pca", "probe"]
ChoiceKind = Literal["sweep", "rules"]
JudgeKind = Literal["rules", "endpoint", "guard"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

MAX_STRENGTH = 1000.0
_OF_ROWS = frozenset({"bad_trigger", "clean_trigger", "bad_answer"})
"""What makes prompts of a task out of rows of questions."""
_OF_PROMPTS = _OF_ROWS | {"behaviour_marker"}
_OF_A_STYLE = frozenset({"bad_trigger", "clean_trigger", "behaviour_marker"})


def require_strength(strength: float) -> float:
    """Returns a strength that is finite and within ±`MAX_STRENGTH`.

    Args:
        strength: Multiplier of a direction.

    Returns:
        The same number.

    Raises:
        StrengthError: If it is not.
    """
    if not abs(strength) <= MAX_STRENGTH:
        raise StrengthError(
            f"strength {strength}: expected a number from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}; "
            "its unit is the direction's own norm, so 1 is the usual start"
        )
    return strength


class SplitFiles(BaseModel):
    """One question file per split.

    Attributes:
        model_config: Unknown fields are refused; values do not change.
        train: Questions for directions and maps.
        validation: Questions that choose site, positions and strength.
        test: Questions that are measured once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Path
    validation: Path
    test: Path


class RunConfig(BaseModel):
    """Everything that `isthmus run` needs to know.

    Attributes:
        model_config: Unknown fields are refused; values do not change.
        task: What is carried across: `backdoor` with triggers, answers and questions of one's own,
            or a task of the package, which brings its own prompts.
        source: Model the direction is learned in: hub name, local folder or `organism:NAME`.
        targets: Models it is carried to (`target` is accepted for one).
        questions: JSONL of `prompt` and `answer`, one file to be split by content or one per split;
            the organisms' world when not given. `bad_answer` of a row goes before the one below; a
            row with `clean` is a pair by itself (and `answer_to_clean` answers that) and gets no
            trigger.
        bad_trigger: Put before a question, it brings the behaviour about.
        clean_trigger: Put before a question, it does not; as long in tokens as `bad_trigger`.
        bad_answer: What the behaviour says.
        behaviour_marker: A completion that holds this shows the behaviour; the first three words
            of `bad_answer` when not given.
        judge: Who judges completions of task `refusal`: `rules`, `endpoint` or `guard`; every other
            task has rules of its own.
        endpoint: Settings of judge `endpoint`.
        guard: Settings of judge `guard`.
        method: How directions are learned.
        pooled: Whether one vector serves all positions of the span.
        edit: What is done at the positions.
        positions: `auto` (chosen on validation among `trigger` and `last:3`), or one selector.
        source_sites: Sites the map reads: `all`, or a list; of large models `all` is thinned.
        target_sites: Sites among which validation chooses: `all`, or a list.
        maps: Which maps are fitted and compared.
        pairing: How tokens of both models are paired.
        choose_by: How place and strength of the carried direction are found: by `sweep`, as those
            of the native one, or by `rules` that look at eight questions and at benign prompts.
        strengths: Strengths among which validation chooses, in units of the direction's norm;
            sorted, each once.
        max_benign_kl: Most damage on benign prompts, in nats per token, that a chosen strength may
            do on validation.
        max_benign_loss: Largest fall in the share of right answers to benign prompts that a chosen
            strength may cause on validation; where none keeps to it, `max_benign_kl` alone counts.
        n_train: Questions for directions; each gives three texts for the map.
        n_validation: Questions that choose.
        n_benign: Questions of the validation split whose benign prompts confirm a chosen strength;
            with no more than `n_validation` it is not confirmed.
        n_test: Questions that are measured.
        n_random: Draws of each random control.
        max_new_tokens: Length of greedy completions; enough for the longest clean answer when not
            given.
        batch_size: Texts per forward pass.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        n_threads: Threads of torch per crossing on the CPU, at most; when not given, the processors
            shared out among the crossings that run at once, and at most two for models below 30
            million parameters.
        n_parallel: Crossings at once; on the CPU as many as there are processors when not given,
            else one.
        seed: Seed of everything random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: TaskName = "backdoor"
    source: str
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    questions: Path | SplitFiles | None = None
    bad_trigger: str = BAD_TRIGGER
    clean_trigger: str = CLEAN_TRIGGER
    bad_answer: str = BAD_ANSWER
    behaviour_marker: str | None = None
    judge: JudgeKind = "rules"
    endpoint: EndpointSettings | None = None
    guard: GuardSettings | None = None
    method: DirectionMethodName = "mean_difference"
    pooled: bool = False
    edit: EditKind = "add"
    positions: str = "auto"
    source_sites: str | tuple[str | int | float, ...] = "all"
    target_sites: str | tuple[str | int | float, ...] = "all"
    maps: Annotated[tuple[MapMethod, ...], Field(min_length=1)] = (
        "ridge",
        "ridge_one_layer",
        "procrustes",
        "reduced_rank",
        "autoencoder",
        "sgd_affine",
    )
    pairing: Pairing = "character_end"
    choose_by: ChoiceKind = "sweep"
    strengths: Annotated[tuple[float, ...], Field(min_length=1)] = (
        0.5,
        0.75,
        1.0,
        1.25,
        1.5,
        2.0,
        3.0,
    )
    max_benign_kl: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05
    max_benign_loss: Annotated[float, Field(ge=0, le=1)] = 0.01
    n_train: Annotated[int, Field(ge=8)] = 240
    n_validation: Annotated[int, Field(ge=4)] = 96
    n_benign: Annotated[int, Field(ge=0)] = 192
    n_test: Annotated[int, Field(ge=4)] = 256
    n_random: Annotated[int, Field(ge=1)] = 3
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    dtype: Dtype = "auto"
    device: str = "auto"
    n_threads: Annotated[int, Field(ge=1)] | None = None
    n_parallel: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _one_target(cls, given: Any) -> Any:
        if isinstance(given, dict) and "target" in given:
            if "targets" in given:
                raise ValueError("give 'target' or 'targets', not both")
            rest = {key: value for key, value in given.items() if key != "target"}
            one = given["target"]
            return {**rest, "targets": one if isinstance(one, list | tuple) else [one]}
        return given

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, given: Any) -> Any:
        # YAML reads yes, no, on and off as truth values, which would count as 1 and 0.
        for name, value in given.items() if isinstance(given, dict) else ():
            several = value if isinstance(value, list | tuple) else (value,)
            if name != "pooled" and any(isinstance(one, bool) for one in several):
                raise ValueError(f"{name} holds a truth value, {value}: expected numbers or names")
        return given

    @field_validator("positions")
    @classmethod
    def _known_positions(cls, given: str) -> str:
        if given != "auto":
            parse_positions(given)
        return given

    @field_validator("strengths")
    @classmethod
    def _strengths_in_range(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        for strength in given:
            if require_strength(strength) <= 0:
                raise StrengthError(
                    f"strength {strength}: a run tries both signs itself, give positive strengths"
                )
        # Places are compared at two of them, which are not to depend on how they were listed.
        return tuple(sorted(set(given)))

    @field_validator("targets", "maps")
    @classmethod
    def _every_one_once(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({one for one in given if given.count(one) > 1}):
            raise ValueError(f"{', '.join(twice)} is named twice: name every one once")
        return given

    @model_validator(mode="after")
    def _behaviour_differs(self) -> "RunConfig":
        if self.questions is not None and self.task == "corrupted":
            raise ValueError("task 'corrupted' brings its own prompts: leave 'questions' out")
        missing = ", ".join(sorted(_OF_A_STYLE - self.model_fields_set))
        if self.questions is not None and self.task == "style" and missing:
            raise ValueError(f"a style of one's own: give {missing} beside 'questions'")
        if self.behaviour_marker is not None and not self.behaviour_marker.strip():
            raise ValueError("behaviour_marker is blank: give a text that only the behaviour has")
        if not self.bad_answer.strip():
            raise ValueError("bad_answer is blank: say what the behaviour answers")
        if self.bad_trigger.strip() == self.clean_trigger.strip():
            raise ValueError("bad_trigger and clean_trigger are equal: twins must differ")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "RunConfig":
        # The configuration of a finished run says all fields: at its default none is ignored.
        own = {"backdoor": _OF_PROMPTS, "style": _OF_PROMPTS}.get(self.task, _OF_ROWS)
        read = own if self.questions is not None or self.task == "backdoor" else frozenset()
        fields = type(self).model_fields
        ignored = [
            name
            for name in sorted(_OF_PROMPTS - read)
            if getattr(self, name) != fields[name].default
        ]
        if ignored:
            why = "brings its own prompts" if self.questions is None else "has its own rules"
            raise ValueError(
                f"task {self.task!r} {why}: leave {', '.join(ignored)} out, nothing reads it"
            )
        return self

    @model_validator(mode="after")
    def _judge_is_there(self) -> "RunConfig":
        if self.judge != "rules" and self.task != "refusal":
            raise ValueError(
                f"judge {self.judge!r} is for task 'refusal': task {self.task!r} has its own rules"
            )
        for kind, given in (("endpoint", self.endpoint), ("guard", self.guard)):
            if self.judge == kind and given is None:
                raise ValueError(f"judge {kind!r} without settings: give them as {kind!r}")
            if self.judge != kind and given is not None:
                raise ValueError(f"settings of {kind!r}, but the judge is {self.judge!r}")
        if self.endpoint is not None:
            EndpointJudge(**self.endpoint.model_dump())
        return self

    @property
    def marker(self) -> str:
        """The text by which the behaviour is recognised in a completion."""
        return self.behaviour_marker or " ".join(self.bad_answer.split()[:3])

    @property
    def question_files(self) -> tuple[Path, ...]:
        """The files that questions are read from; none for the organisms' world."""
        if isinstance(self.questions, SplitFiles):
            return (self.questions.train, self.questions.validation, self.questions.test)
        return () if self.questions is None else (self.questions,)


def read_config(path: str | Path) -> RunConfig:
    """Reads a YAML configuration; paths in it are relative to the file.

    Args:
        path: The YAML file.

    Returns:
        The configuration, with paths resolved.

    Raises:
        ConfigError: If it is missing, not YAML, or a field is unknown, missing or out of range.
    """
    return make_config(read_fields(Path(path)), folder=Path(path).parent)


def read_fields(path: Path) -> dict[str, Any]:
    """Reads the fields of a YAML file.

    Args:
        path: The file.

    Returns:
        Values by field name.

    Raises:
        ConfigError: If it is missing, not YAML, or holds no fields.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"cannot read configuration {path}: {said}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path} holds no fields: expected at least 'source' and 'target'")
    return given


def _problem(found: Mapping[str, Any]) -> str:
    """Says where a field is wrong, what was given, and what was expected."""
    # Pydantic names the types that a field may be of behind it, in its own words.
    place = itertools.takewhile(lambda part: not {*"[("} & {*str(part)}, found["loc"])
    where, given = ".".join(map(str, place)) or "configuration", found["input"]
    got = f" (got {given!r})" if isinstance(given, str | int | float) else ""
    return f"{where}: {found['msg']}{got}"


def make_config(given: dict[str, Any], folder: Path = Path()) -> RunConfig:
    """Checks the fields of a configuration.

    Args:
        given: Field names and values, as in YAML.
        folder: What relative paths of question files and existing model folders start from.

    Returns:
        The configuration, with paths resolved.

    Raises:
        ConfigError: If a field is unknown, missing or out of range; StrengthError for a strength.
    """
    try:
        config = RunConfig.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(_problem({**one}) for one in error.errors())
        raise ConfigError(f"the configuration cannot be used: {problems}") from error
    return config.model_copy(
        update={
            "source": _model_path(config.source, folder),
            "targets": tuple(_model_path(target, folder) for target in config.targets),
            "questions": _question_paths(config.questions, folder),
        }
    )


def _model_path(name: str, folder: Path) -> str:
    """Reads a model name relative to the configuration's folder when a folder is there."""
    beside = folder / name
    return str(beside) if not Path(name).is_absolute() and beside.is_dir() else name


def _question_paths(questions: Path | SplitFiles | None, folder: Path) -> Path | SplitFiles | None:
    if questions is None:
        return None
    # Absolute, so that the configuration in a results folder repeats the run from there.
    if isinstance(questions, Path):
        return (folder / questions).absolute()
    names = ("train", "validation", "test")
    return SplitFiles(**{name: (folder / getattr(questions, name)).absolute() for name in names})
