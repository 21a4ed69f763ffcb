"""What is given to a sampling call, brought to one value for each of its samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unidiff_core.codec.codec import Raw
from unidiff_core.sampling.loop import OnStep, StepReport
from unidiff_core.sampling.spec import SpecError

Given = Mapping[str, Raw | Sequence[Raw]]
"""modality → one raw sample, for all, or one for each."""


def repeated(given: Given, num: int | None) -> tuple[dict[str, list[Raw]], int]:
    """Every given value as a list of `num`, and `num`: as many as are given, or one, if it is None.

    Raises:
        SpecError: if the numbers do not fit together.
    """
    lists = {name: list(value) if isinstance(value, (list, tuple)) else [value] for name, value in given.items()}
    num = num if num is not None else max(map(len, lists.values()), default=1)
    for name, values in lists.items():
        if len(values) not in (1, num):
            raise SpecError(
                f"{len(values)} values of {name!r} are given for {num} samples; give one, or {num} (a list or tuple "
                "is several samples: a single one that is a list itself goes into a list)"
            )
    if num < 1:
        raise SpecError(f"the number of samples is at least 1, not {num}: a list that is given is empty")
    return {name: values * num if len(values) == 1 else values for name, values in lists.items()}, num


def conditions_of(
    values: Mapping[str, Any], known: Collection[str], num: int, device: torch.device
) -> dict[str, Tensor]:
    """One value ``[num, ...]`` of each side input for each sample.

    Args:
        values: by name: a number for all, or a tensor of one for each.
        known: names that the backbone takes.
        num: samples.
        device: of the network.

    Raises:
        SpecError: if the backbone does not take one, or a tensor is not of `num` values.
    """
    if wrong := [name for name in values if name not in known]:
        takes = f"takes {', '.join(known)}" if known else "takes none"
        raise SpecError(f"unknown condition {wrong[0]!r}; the backbone {takes}")
    rows = {name: torch.as_tensor(value, device=device) for name, value in values.items()}
    for name, row in rows.items():
        if row.ndim and len(row) != num:
            raise SpecError(f"{len(row)} values of the condition {name!r} are given for {num} samples")
    return {name: row if row.ndim else row.expand(num) for name, row in rows.items()}


def shifted(on_step: OnStep | None, offset: int, total: int) -> OnStep | None:
    """Steps counted over all batches."""
    if on_step is None:
        return None

    def counted(report: StepReport) -> bool | None:
        return on_step(replace(report, step=offset + report.step, steps=total))

    return counted
