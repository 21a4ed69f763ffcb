"""Dropping: each sample's missing or ignored modalities are left out of the network's input, not put to T."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from unidiff_core.foundation.latents import Conditions, Latents, Times, dropped

Network = Callable[[Latents, Times, Conditions], dict[str, Tensor]]
"""(latents, times, conditions) → predictions of the streams that it was given."""


def predicted_on_kept(
    network: Network,
    empty: Mapping[str, Tensor],
    latents: Latents,
    times: Times,
    kept: Mapping[str, Tensor],
    conditions: Conditions,
) -> dict[str, Tensor]:
    """Predictions on each sample's kept modalities alone: one evaluation for each pattern of them that occurs.

    Args:
        network: to be evaluated.
        empty: what stands in the result where a sample dropped the stream's modality.
        latents: of the whole micro-batch.
        times: as well.
        kept: modality → bool ``[b]``.
        conditions: of the whole micro-batch.
    """
    names = list(kept)
    patterns = torch.stack([kept[name] for name in names], dim=1)  # (b, N)
    prediction = dict(empty)
    for pattern in patterns.unique(dim=0):
        rows = (patterns == pattern).all(1).nonzero()[:, 0]
        absent = [name for name, keeps in zip(names, pattern.tolist(), strict=True) if not keeps]
        if len(absent) == len(names):
            continue
        some_latents = {key: value[rows] for key, value in latents.items()}
        some_times = {name: t[rows] for name, t in times.items()}
        some = network(
            *dropped(some_latents, some_times, absent), {name: value[rows] for name, value in conditions.items()}
        )
        for key, value in some.items():
            prediction[key] = prediction[key].to(value.dtype).index_copy(0, rows, value)
    return prediction
