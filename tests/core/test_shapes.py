"""The shapes in annotations are checked while the tests run."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typecheck import CALLS, checked

from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.training.law import Uniform


def test_the_seams_are_checked():
    assert all(hasattr(function, "__wrapped__") for function in (Gaussian.clean, Gaussian.step, Uniform.time))


def test_a_wrong_shape_or_dtype_is_caught_in_the_first_calls():
    @jaxtyped(typechecker=checked)
    def add(a: Float[Tensor, "b n"], b: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        return a + b

    with pytest.raises(TypeCheckError, match="parameter 'b'"):
        add(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(TypeCheckError, match="parameter 'a'"):
        add(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))
    for _ in range(CALLS):
        add(torch.zeros(2, 3), torch.zeros(2, 3))
    assert add(torch.zeros(2, 3), torch.zeros(2, 1)).shape == (2, 3)
