"""Learns vectors at the end of the prompt that make a model end its answer where a teacher does.

1. A model whose prompt was edited may say the right word and then not stop: what it generates still
   sees the untouched prompt in the layers below the edit.
2. One vector per token of the prompt's end, the same for all prompts, is added on top of the edit
   and trained on answers that the model itself gave under another intervention; no label is used.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import PlaceEdits
from isthmus.models.hooks import editing
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.switch_training import (
    TrainingSettings,
    answer_logprobs_with_gradients,
    shuffled_batches,
)


def with_vectors(
    edits: PlaceEdits, site: Site, vectors: Float[Tensor, "position d_model"]
) -> PlaceEdits:
    """Returns edits followed by an addition at the last prompt tokens of the same site.

    Args:
        edits: What is done first.
        site: Where both act.
        vectors: One per token, in text order, the last one for the prompt's last token.

    Returns:
        Both, for any batch.
    """
    added = Intervention.steering({site: vectors}, parse_positions(f"last:{len(vectors)}")).place

    def place(batch: TokenBatch) -> list[PlacedEdit]:
        return [*edits(batch), *added(batch)]

    return place


def learn_ending(
    lm: LanguageModel,
    taught: Sequence[EncodedText],
    edits: PlaceEdits,
    start: tuple[Site, Float[Tensor, "position d_model"]],
    settings: TrainingSettings,
    progress: Progress,
) -> Float[Tensor, "position d_model"]:
    """Learns vectors that, added on top of an edit, make the teacher's answers likely.

    Args:
        lm: The model, whose weights stay as they are.
        taught: Prompts with the teacher's answers and their end.
        edits: What is done to these texts anyway.
        start: Where the vectors are added, and their first values, one per token from the end.
        settings: Steps, batches, rate.
        progress: Who shows progress.

    Returns:
        The vectors after the last step.
    """
    site, first = start
    vectors = first.clone().requires_grad_()
    optimiser = torch.optim.Adam([vectors], lr=settings.learning_rate)
    with progress.stage("learn the ending", settings.n_steps) as advance:
        for step, batch in enumerate(shuffled_batches(lm, taught, settings)):
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(step)
            placed = with_vectors(edits, site, vectors)(batch)
            with editing(lm.layout, placed), torch.enable_grad():
                got = answer_logprobs_with_gradients(lm, batch)
            wanted = [i for text in batch.texts for i in text.token_ids[text.n_prompt :]]
            loss = torch.nn.functional.nll_loss(got, torch.tensor(wanted, device=got.device))
            # With respect to the vectors alone: the model's weights get no gradients.
            (vectors.grad,) = torch.autograd.grad(loss, [vectors])
            optimiser.step()
            advance(1)
    return vectors.detach()
