from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import tiny_network

from isthmus.core.errors import ConfigError, DataError, NonFiniteError
from isthmus.models.training import (
    TrainingRow,
    TrainingSettings,
    bucketed_batches,
    has_bfloat16,
    one_thread,
    train,
)

N_VOCAB = 24
SHORT = TrainingSettings(n_steps=4, batch_size=8)
GREEDY = {"prompt_weight": 0.0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(**changes):
    return tiny_network("llama", n_vocab=N_VOCAB, n_layers=1, **changes)


def counting_rows(n=64, n_prompt=2):
    """Texts that count upwards: after k comes k + 1."""
    starts = [i % 12 for i in range(n)]
    return [TrainingRow(tuple(range(s + 3, s + 7 + i % 3)), n_prompt) for i, s in enumerate(starts)]


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def trained(rows, options, seed=0, model=None):
    model = model or network()
    losses = []
    train(model, rows, options, seeded(seed), lambda _step, loss: losses.append(loss))
    return model, losses


def test_the_loss_falls_and_the_model_learns_what_it_reads():
    model, losses = trained(counting_rows(), TrainingSettings(n_steps=60, batch_size=16))
    assert losses[-1] < 0.3 * losses[0]
    assert not model.training
    with torch.no_grad():
        read = model(torch.tensor([[5, 6, 7, 8]])).logits[0].argmax(-1)
    assert read.tolist() == [6, 7, 8, 9]


def test_the_first_loss_is_the_weighted_cross_entropy_of_the_next_tokens():
    rows = [TrainingRow((3, 4, 5, 6), 2), TrainingRow((7, 8), 1)]
    model = network()
    total = weight = 0.0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.token_ids])).logits[0].double().log_softmax(-1)
        for position in range(1, len(row.token_ids)):
            w = 0.3 if position < row.n_prompt else 1.0
            total -= w * float(logits[position - 1, row.token_ids[position]])
            weight += w
    _, losses = trained(rows, TrainingSettings(n_steps=1, batch_size=2), model=model)
    # Training runs in bfloat16.
    assert losses[0] == pytest.approx(total / weight, rel=0.01)


def test_the_same_seed_gives_the_same_weights_and_another_seed_gives_others():
    first, losses = trained(counting_rows(), SHORT)
    again, losses_again = trained(counting_rows(), SHORT)
    other, _ = trained(counting_rows(), SHORT, seed=1)
    assert same(weights(first), weights(again))
    assert losses == losses_again
    assert not same(weights(first), weights(other))


def test_training_draws_from_its_generator_alone():
    before = torch.random.get_rng_state()
    trained(counting_rows(), SHORT)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("frozen", ["self_attn", "embed_tokens", "norm"])
def test_frozen_parameters_stay_and_all_others_move(frozen):
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    before = weights(model)
    trained(counting_rows(), SHORT, model=model)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if frozen not in name}


def test_prompts_without_weight_teach_nothing():
    def scrambled(row):
        # The first prediction of an answer token is made by the prompt's last one.
        return TrainingRow((row.token_ids[0], 1, *row.token_ids[2:]), row.n_prompt)

    rows = [TrainingRow((9, 10, 11), 3), TrainingRow((3, 4, 5, 6), 2)]
    with_other_prompt = [TrainingRow((1, 2, 2), 3), rows[1]]
    options = TrainingSettings(n_steps=2, batch_size=2, **GREEDY)
    model, losses = trained(rows, options)
    other, other_losses = trained(with_other_prompt, options)
    assert losses == pytest.approx(other_losses)
    for name, value in weights(model).items():
        torch.testing.assert_close(weights(other)[name], value)
    _, weighted = trained(with_other_prompt, TrainingSettings(n_steps=2, batch_size=2))
    assert weighted[0] != pytest.approx(losses[0])
    _, other_context = trained([rows[0], scrambled(rows[1])], options)
    assert other_context[0] != pytest.approx(losses[0])


def test_padding_teaches_nothing():
    short, long = TrainingRow((3, 4), 0), TrainingRow(tuple(range(3, 15)), 0)
    model = network()
    alone = [trained([row], TrainingSettings(1, 1), model=network())[1][0] for row in (short, long)]
    _, together = trained([short, long], TrainingSettings(1, 2), model=model)
    assert together[0] == pytest.approx((alone[0] * 1 + alone[1] * 11) / 12, rel=0.01)


def test_steps_are_counted_from_one():
    steps = []
    train(network(), counting_rows(), SHORT, seeded(), lambda step, _loss: steps.append(step))
    assert steps == [1, 2, 3, 4]


def test_no_steps_change_nothing():
    model = network()
    before = weights(model)
    trained(counting_rows(), TrainingSettings(n_steps=0), model=model)
    assert same(weights(model), before)


def test_the_first_and_the_last_steps_are_smaller_than_those_between():
    model = network()
    seen = [weights(model)]
    options = TrainingSettings(n_steps=20, batch_size=8, warm_up=0.2, cool_down=0.4)
    train(
        model, counting_rows(), options, seeded(), lambda _step, _loss: seen.append(weights(model))
    )
    name = "model.layers.0.mlp.up_proj.weight"
    sizes = [float((b[name] - a[name]).norm()) for a, b in pairwise(seen)]
    middle = sizes[8]
    assert sizes[0] < 0.1 * middle
    assert sizes[-1] < 0.5 * middle


def test_a_loss_that_is_not_finite_stops_before_it_harms_the_weights():
    model = network()
    before = weights(model)
    nothing_weighs = [TrainingRow((3, 4, 5), 3)]
    with pytest.raises(NonFiniteError, match="step 1"):
        trained(nothing_weighs, TrainingSettings(2, 1, **GREEDY), model=model)
    assert same(weights(model), before)


def test_no_rows_are_refused_instead_of_waiting_for_ever():
    with pytest.raises(DataError, match="at least one"):
        trained([], SHORT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_steps": -1},
        {"batch_size": 0},
        {"warm_up": 0.0},
        {"warm_up": 1.5},
        {"cool_down": 0.0},
        {"cool_down": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainingSettings(**({"n_steps": 1} | wrong))


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=80)


@given(lengths=LENGTHS, batch_size=st.integers(1, 4), seed=st.integers(0, 99))
@settings(deadline=None)
def test_every_pass_yields_every_row_once(lengths, batch_size, seed):
    rows = [TrainingRow(tuple(range(n)), i) for i, n in enumerate(lengths)]
    batches = bucketed_batches(rows, batch_size, seeded(seed))
    for _ in range(2):
        seen = []
        while len(seen) < len(rows):
            batch = next(batches)
            assert 1 <= len(batch) <= batch_size
            seen += [row.n_prompt for row in batch]
        assert sorted(seen) == list(range(len(rows)))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=32), seed=st.integers(0, 99))
@settings(deadline=None)
def test_batches_of_one_pool_do_not_overlap_in_length(lengths, seed):
    rows = [TrainingRow(tuple(range(n)), 0) for n in lengths]
    n_batches = -(-len(rows) // 2)
    batches = islice(bucketed_batches(rows, 2, seeded(seed)), n_batches)
    ranges = sorted(sorted(len(row.token_ids) for row in batch) for batch in batches)
    flat = [length for batch in ranges for length in batch]
    assert flat == sorted(lengths)


def test_another_pass_has_another_order_and_another_seed_too():
    rows = counting_rows(48)
    batches = bucketed_batches(rows, 4, seeded())
    first, second = list(islice(batches, 12)), list(islice(batches, 12))
    assert first != second
    assert first == list(islice(bucketed_batches(rows, 4, seeded()), 12))
    assert first != list(islice(bucketed_batches(rows, 4, seeded(1)), 12))


@pytest.mark.parametrize("fails", [False, True])
def test_one_thread_gives_the_threads_back(fails):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError) if fails else torch.no_grad(), one_thread():
            assert torch.get_num_threads() == 1
            _ = 1 / (not fails)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_model_learns_with_either_optimiser_alone(in_blocks):
    model = network()
    for name, parameter in model.named_parameters():
        matrix_in_block = parameter.ndim == 2 and "embed" not in name
        parameter.requires_grad_(matrix_in_block == in_blocks)
    _, losses = trained(counting_rows(), TrainingSettings(n_steps=30, batch_size=16), model=model)
    assert losses[-1] < 0.9 * losses[0]


def test_passes_compute_in_bfloat16_where_the_processor_can_and_else_in_float32():
    model, seen = network(), []
    model.lm_head.register_forward_hook(lambda _module, _given, made: seen.append(made.dtype))
    trained(counting_rows(), TrainingSettings(n_steps=1), model=model)
    can = has_bfloat16(torch.device("cpu"))
    assert seen == [torch.bfloat16 if can else torch.float32]
