"""Full precision inside of a lower one: what codecs give must not depend on who calls them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


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
