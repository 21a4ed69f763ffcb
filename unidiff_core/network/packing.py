"""Packing: tokens of samples of different lengths, one after the other, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Runs = list[tuple[int, int]]
"""(samples, tokens of each), in the order in which they lie: what attends to what."""


@dataclass(frozen=True)
class Packing:
    """Which tokens of a batch are there, in samples sorted by their number of tokens: attention takes a run at a time.

    Attributes:
        places: of the packed tokens among all ``b n``.
        shape: ``(b, n)`` of the batch.
        runs: of samples of one length.
    """

    places: Tensor
    shape: tuple[int, int]
    runs: Runs

    @classmethod
    def of(cls, kept: Bool[Tensor, "b n"]) -> Packing:
        """The tokens that are kept."""
        b, n = kept.shape
        lengths, order = kept.sum(1).sort(stable=True)
        rows = order[:, None] * n + torch.arange(n, device=kept.device)
        sizes, counts = lengths.unique_consecutive(return_counts=True)
        runs = [(count, size) for count, size in zip(counts.tolist(), sizes.tolist(), strict=True) if size]
        return cls(rows[kept[order]], (b, n), runs)

    def pack(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "1 total width"]:
        """What is kept, in one row."""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, x: Float[Tensor, "1 total width"]) -> Float[Tensor, "b n width"]:
        """Back at their places; zero where nothing was kept."""
        b, n = self.shape
        return x.new_zeros(b * n, x.shape[-1]).index_copy(0, self.places, x[0]).view(b, n, -1)
