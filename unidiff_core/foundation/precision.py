"""Precision: the types that a network can be in, and full precision inside of a lower one, for codecs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
"""What a network's weights are in, and what it computes in, when samples are drawn."""


def dtype_of(precision: Precision) -> torch.dtype:
    """The type of that name.

    Raises:
        ValueError: if there is none.
    """
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in types:
        raise ValueError(f"a precision is {', '.join(get_args(Precision))}, not {precision!r}")
    return types[precision]


def at_least_single(x: Tensor) -> Tensor:
    """A tensor of floating-point numbers in float32, or as it is if it has more digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def full_precision(device: torch.device | str = "cpu") -> Iterator[None]:
    """No autocast on the CPU and on `device`, and new tensors of float32 at least.

    A step in ``bf16-mixed`` runs under autocast, one in ``bf16-true`` with bfloat16 as the dtype of new tensors.
    """
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        for kind in {"cpu", torch.device(device).type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.promote_types(default, torch.float32))
        stack.callback(torch.set_default_dtype, default)
        yield
