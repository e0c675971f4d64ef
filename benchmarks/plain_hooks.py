"""The shortest hook there is: what isthmus is compared with, so none of its own code."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from isthmus.core.sites import Site
from isthmus.models.language_model import LanguageModel


@contextmanager
def plain_hook(
    lm: LanguageModel, site: Site, visit: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Calls `visit` with the output of a block; what it returns, if anything, replaces it.

    Args:
        lm: A model whose blocks return one tensor.
        site: A `resid_post` site.
        visit: Function of the output.

    Yields:
        None: While the hook is there.
    """

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return visit(output)

    handle = lm.layout.module_at(site).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
