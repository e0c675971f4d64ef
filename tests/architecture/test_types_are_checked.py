from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from tests.type_checks import checked, has_shapes
from torch import Tensor

from isthmus.core.sites import Site, parse_site
from isthmus.models.muon import orthogonalised

decorate = checked(typechecker=beartype)


def test_wrong_types_and_shapes_are_errors_in_every_kind_of_definition():
    not_text: Any = 3.5j
    with pytest.raises(TypeCheckError):
        parse_site(not_text, 4)
    with pytest.raises(TypeCheckError):
        Site(not_text)
    with pytest.raises(TypeCheckError):
        orthogonalised(torch.zeros(3))


def test_shapes_that_disagree_and_wrong_answers_are_errors():
    @decorate
    def product(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return x * y

    @decorate
    def count(n: int) -> str:
        return n

    @decorate
    @dataclass
    class Pair:
        x: Float[Tensor, " n"]
        y: Float[Tensor, " n"]

    product(torch.zeros(2), torch.zeros(2))
    for wrong in (product, Pair):
        with pytest.raises(TypeCheckError):
            wrong(torch.zeros(2), torch.zeros(1))
    with pytest.raises(TypeCheckError):
        count(1)


def test_a_shape_is_found_however_deep_it_lies():
    shape = Float[Tensor, " n"]
    for annotation in (shape, shape | None, dict[str, list[shape]], tuple[int, shape], "Text"):
        assert has_shapes(annotation)
    assert not any(map(has_shapes, (int, None, list[int], Tensor, dict[str, int | None])))


def test_the_package_is_instrumented():
    assert jaxtyping.jaxtyped is checked
