"""The shapes in annotations are checked while the tests run."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.training.law import Uniform


def test_a_wrong_shape_or_dtype_is_caught_at_the_seam():
    with pytest.raises(TypeCheckError, match="prediction"):
        Gaussian().clean(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(TypeCheckError, match="uniform"):
        Uniform().time(torch.zeros(3))  # float32, where double is needed
