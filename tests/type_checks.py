"""How annotations are checked while the tests run: shapes by jaxtyping, all else by beartype alone.

jaxtyping keeps the sizes of a call's axes and binds its arguments for that, which takes ten times
as long as beartype's checks; where no annotation has a shape, there are no sizes to keep.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf

_SAME_ERROR = BeartypeConf(violation_type=jaxtyping.TypeCheckError)
_jaxtyped: Callable[..., Any] = jaxtyping.jaxtyped


def has_shapes(annotation: Any) -> bool:
    """Says whether an annotation holds a shape anywhere, or is text, which may name one."""
    if isinstance(annotation, list | tuple):
        return any(map(has_shapes, annotation))
    is_array = isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray)
    return is_array or isinstance(annotation, str) or any(map(has_shapes, get_args(annotation)))


def _is_plain(function: Any) -> bool:
    """Says whether beartype alone checks all there is; generators keep jaxtyping's eager check."""
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
        return False
    annotations: Iterable[Any] = getattr(function, "__annotations__", {}).values()
    return not any(map(has_shapes, annotations))


def checked(*, typechecker: Any) -> Callable[[Any], Any]:
    """Stands for `jaxtyping.jaxtyped` in modules that jaxtyping's import hook instruments."""

    def decorate(it: Any) -> Any:
        if not inspect.isclass(it):
            if _is_plain(it):
                return typechecker(it, conf=_SAME_ERROR)
            return _jaxtyped(it, typechecker=typechecker)
        if not (dataclasses.is_dataclass(it) and _is_plain(it.__init__)):
            return _jaxtyped(it, typechecker=typechecker)
        it.__init__ = typechecker(it.__init__, conf=_SAME_ERROR)
        return it

    return decorate
