import numpy as np
import pytest
import torch
from tests.fakes import n_hooks, tiny_model
from tests.studies.keys import repeated

from isthmus.core.errors import ConfigError, TriggerError
from isthmus.core.sites import Site
from isthmus.core.texts import pad_batch
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs
from isthmus.studies.noise_study import fresh_noise, site_units, study_noise
from isthmus.studies.result import StudyResult

SITE = Site(0)
SIZES = (0.05, 4.0)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model("llama")


def test_noise_of_size_nought_is_bit_identical(lm: LanguageModel):
    texts = encode_prompts(lm.tokenizer, ["Name a bear.", "What is it?"], answers=["A", "It is."])
    before = answer_logprobs(lm, texts)
    after = answer_logprobs(lm, texts, edits=fresh_noise(SITE, lm.d_model, 0.0, "prompt", 0))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    louder = answer_logprobs(lm, texts, edits=fresh_noise(SITE, lm.d_model, 1.0, "prompt", 0))
    assert not torch.allclose(louder[0], before[0], atol=1e-3)
    assert n_hooks(lm) == 0


def test_noise_has_its_size_in_every_coordinate_and_is_another_in_every_batch(lm: LanguageModel):
    batch = pad_batch(encode_prompts(lm.tokenizer, ["Name a bear."] * 2), lm.pad_id, "left")
    still = torch.zeros(40, 50, 32)
    place = fresh_noise(SITE, 32, 0.7, "last:3", 5)
    first, second = (place(batch)[0].edit(still) for _ in range(2))
    assert float(first.std()) == pytest.approx(0.7, rel=0.01)
    assert float(first.mean()) == pytest.approx(0, abs=0.01)
    assert not torch.equal(first, second)
    again = fresh_noise(SITE, 32, 0.7, "last:3", 5)
    assert torch.equal(again(batch)[0].edit(still), first)


def test_noise_stays_at_its_positions(lm: LanguageModel):
    batch = pad_batch(encode_prompts(lm.tokenizer, ["Name a bear."]), lm.pad_id, "left")
    (placed,) = fresh_noise(SITE, lm.d_model, 1.0, "last:2", 0)(batch)
    assert placed.given[0].nonzero()[:, 0].tolist() == [len(batch.texts[0]) - i for i in (2, 1)]
    assert not placed.generated.any()


def test_the_unit_of_a_site_is_the_median_tokens_root_mean_square(lm: LanguageModel):
    texts = encode_prompts(lm.tokenizer, ["Name a bear.", "What is the colour of the fox?"])
    rows = torch.cat(all_token_activations(lm, texts, [SITE])[SITE]).numpy().astype(float)
    wanted = np.sort(np.sqrt((rows**2).mean(1)))[(len(rows) - 1) // 2]
    assert site_units(lm, texts, [SITE], 2)[SITE] == pytest.approx(wanted)


@pytest.mark.parametrize("wrong", [{"sizes": ()}, {"sizes": (0.0,)}, {"n_draws": 0}])
def test_noise_that_is_none_is_refused(wrong: dict[str, object]):
    with pytest.raises(ConfigError, match="expected sizes above 0"):
        study_noise("organism:llama-backdoor", **wrong)  # type: ignore[arg-type]


def test_a_task_without_a_trigger_to_put_noise_on_is_refused():
    with pytest.raises(TriggerError, match="'refusal' has no trigger"):
        study_noise("organism:llama-assistant", settings={"task": "refusal"})


@pytest.fixture(scope="module")
def found() -> StudyResult:
    return study_noise(
        "organism:llama-backdoor",
        base="organism:llama",
        sites=(0,),
        sizes=SIZES,
        n_prompts=6,
        n_draws=3,
    )


def value(found: StudyResult, metric: str, size: float | None, positions: str | None) -> float:
    values = [
        m.value
        for m in found.measurements
        if (m.metric, m.strength, m.positions) == (metric, size, positions)
    ]
    assert values[0] is not None
    return values[0]


def test_a_breath_of_noise_leaves_everything_as_it_was(found: StudyResult):
    for metric in ("behaviour_rate", "answer_accuracy", "perplexity"):
        untouched = value(found, metric, None, None)
        assert value(found, metric, SIZES[0], "trigger") == pytest.approx(untouched)
    assert value(found, "recovery", SIZES[0], "trigger") == pytest.approx(0, abs=0.05)


def test_much_noise_at_the_trigger_removes_what_it_cannot_bring_about(found: StudyResult):
    assert value(found, "recovery", SIZES[1], "trigger") > 0.5
    assert value(found, "swap", SIZES[1], "trigger") < 0.5
    assert value(found, "behaviour_rate", SIZES[1], "trigger") < 1
    assert value(found, "benign_accuracy", SIZES[1], "prompt") < 0.5


def test_every_number_is_there_once_with_its_prompts_as_n(found: StudyResult):
    noisy = [m for m in found.measurements if m.condition == "noise"]
    # Three rates or perplexity and two likelihoods of removal; two rates in four ways of induction.
    assert len(noisy) == len(SIZES) * (5 + 4 * 2)
    assert not repeated(found)
    assert {m.n for m in found.measurements} == {6}
    assert len(found.rows) == len(SIZES)
    assert len(found.figures) == 2
    assert "asked under 3 noises" in " ".join(found.notes)
