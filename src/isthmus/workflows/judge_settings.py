"""What a run says of a judge that is no rule: a language model behind an endpoint, or a guard."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Meaning = Literal["refuses", "complies", "refuses_then_complies", "unjudged"]


class EndpointSettings(BaseModel):
    """A language model that judges refusal, behind an OpenAI-compatible endpoint.

    The key is no setting: it comes from the environment variable `ISTHMUS_JUDGE_API_KEY`.

    Attributes:
        model_config: Unknown fields are refused; values do not change.
        base_url: Address of the server, with or without `/v1`.
        model: Name of the model, as the server knows it.
        timeout_s: Longest time for one request, in seconds.
        n_retries: How often a request without a clear answer is tried again.
        pause_s: Pause before the second try, in seconds; it doubles each time.
        n_parallel: How many requests run at once.
        settings: Further fields of every request, such as `max_tokens`; these replace the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str
    model: str
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    n_retries: Annotated[int, Field(ge=0)] = 3
    pause_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    n_parallel: Annotated[int, Field(ge=1)] = 4
    settings: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0})


class GuardSettings(BaseModel):
    """A classifier that judges refusal.

    Attributes:
        model_config: Unknown fields are refused; values do not change.
        name: Hub name or folder.
        meanings: What each label of the classifier says about a completion.
        reads: Whether it is shown the completion alone, or prompt and completion.
        min_probability: Least probability that makes a verdict; below it a row is unjudged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    meanings: dict[str, Meaning]
    reads: Literal["completion", "pair"] = "completion"
    min_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
