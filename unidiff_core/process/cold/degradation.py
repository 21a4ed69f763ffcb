"""Degradations: linear maps that take detail away with time, each diagonal in an orthonormal basis of its own.

In that basis (its *coordinates*) a degradation only multiplies: a coordinate of level l keeps the share ``kept(l, t)``.
So all that holds for Gaussian noise, where every coordinate keeps the same share, holds coordinate by coordinate.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unidiff_core.foundation.stream import Stream
from unidiff_core.foundation.time import T

Shape = tuple[int, ...]


class Degradation(ABC):
    """A linear map of grids ``(channels, *sizes)`` at each time, diagonal in one basis; the identity at 0."""

    @abstractmethod
    def levels(self, shape: Shape) -> Float[Tensor, "*shape"]:
        """The level of each coordinate of a stream of this shape: those of one level keep the same. Float64."""

    @abstractmethod
    def kept(self, level: Float[Tensor, "*#any"], t: Float[Tensor, "*#any"]) -> Float[Tensor, "..."]:
        """The share of a coordinate that is kept at a time in steps: 1 at 0, and never more at a later time."""

    def coordinates(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """From data to coordinates, of the same shape; lengths are kept."""
        return x

    def data(self, coordinates: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """From coordinates back to data."""
        return coordinates

    def check(self, stream: Stream) -> None:
        """Whether it goes with a stream.

        Raises:
            ValueError: if it does not; says why.
        """
        if stream.layout != "grid":
            kind = "of symbols" if stream.layout == "symbols" else f"a {stream.layout}"
            raise ValueError(
                f"{type(self).__name__} degrades grids, and the stream {stream} is {kind}: give the "
                "modality another process"
            )


class Blur(Degradation):
    """Heat that spreads (Rissanen et al. 2022, https://arxiv.org/abs/2206.13397): each frequency of the discrete cosine
    transform decays at a rate of its own, the mean not at all.

    Args:
        width: standard deviation of the blur at T, in cells of the grid; it grows in proportion to the time.

    Raises:
        ValueError: if it is not above 0.
    """

    def __init__(self, width: float = 8.0) -> None:
        if not 0 < width < math.inf:
            raise ValueError(f"the width of a blur is above 0 cells, not {width}")
        self.width = width

    def levels(self, shape: Shape) -> Float[Tensor, "*shape"]:
        """Squared frequency, in radians a cell."""
        rows = [(math.pi * torch.arange(size, dtype=torch.float64) / size).square() for size in shape[1:]]
        total = sum(torch.meshgrid(*rows, indexing="ij"), torch.zeros(shape[1:], dtype=torch.float64))
        # Rounded: the same frequency by another order of sums is the same level.
        return total.round(decimals=9).expand(shape).clone()

    def kept(self, level: Float[Tensor, "*#any"], t: Float[Tensor, "*#any"]) -> Float[Tensor, "..."]:
        """exp(−level·width²/2)."""
        return (-level * (self.width * t / T).square() / 2).exp()

    def coordinates(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """The discrete cosine transform (type II, orthonormal) along every axis of the grid."""
        for axis in range(2, x.ndim):
            x = _along(x, axis, cosines(x.shape[axis]))
        return x

    def data(self, coordinates: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """Its inverse."""
        for axis in range(2, coordinates.ndim):
            coordinates = _along(coordinates, axis, cosines(coordinates.shape[axis]).T)
        return coordinates


class BlockMean(Degradation):
    """Blocks of cells fade to their mean: pairs first, then squares of 4, 8, … cells a side.

    Diagonal in Haar's basis: what a block of 2ᵏ cells a side has beyond its mean is a level.

    Args:
        scales: how often the side of a block doubles; at T blocks of 2^scales cells a side are one colour.

    Raises:
        ValueError: if it is below 1.
    """

    def __init__(self, scales: int = 3) -> None:
        if scales < 1:
            raise ValueError(f"blocks double at least once: scales is 1 or more, not {scales}")
        self.scales = scales

    def check(self, stream: Stream) -> None:
        """A grid that divides into the largest blocks."""
        super().check(stream)
        side = 2**self.scales
        if any(size % side for size in stream.shape[1:]):
            raise ValueError(
                f"the stream {stream} does not divide into blocks of {side} cells a side; give BlockMean fewer scales "
                f"than {self.scales}"
            )

    def levels(self, shape: Shape) -> Float[Tensor, "*shape"]:
        """0 for the finest details up to scales − 1 for the coarsest; `scales` for the means, which stay."""
        levels = torch.full(shape, float(self.scales), dtype=torch.float64)
        for scale in reversed(range(self.scales)):
            whole = tuple(slice(size // 2**scale) for size in shape[1:])
            half = tuple(slice(size // 2 ** (scale + 1)) for size in shape[1:])
            means = levels[(slice(None), *half)].clone()
            levels[(slice(None), *whole)] = scale
            levels[(slice(None), *half)] = means
        return levels

    def kept(self, level: Float[Tensor, "*#any"], t: Float[Tensor, "*#any"]) -> Float[Tensor, "..."]:
        """Each level fades on a straight line, in its own equal part of the time."""
        return (level + 1 - self.scales * t / T).clamp(0, 1)

    def coordinates(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """Haar's transform: means to the low corner, again and again."""
        x = x.clone()
        for scale in range(self.scales):
            corner: tuple[Any, ...] = (..., *(slice(size // 2**scale) for size in x.shape[2:]))
            part = x[corner]
            for axis in range(2, x.ndim):
                even, odd = part.unfold(axis, 2, 2).unbind(-1)
                part = torch.cat([even + odd, even - odd], dim=axis) * math.sqrt(0.5)
            x[corner] = part
        return x

    def data(self, coordinates: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """Its inverse."""
        x = coordinates.clone()
        for scale in reversed(range(self.scales)):
            corner: tuple[Any, ...] = (..., *(slice(size // 2**scale) for size in x.shape[2:]))
            part = x[corner]
            for axis in reversed(range(2, x.ndim)):
                mean, detail = part.chunk(2, dim=axis)
                pair = torch.stack([mean + detail, mean - detail], dim=axis + 1) * math.sqrt(0.5)
                part = pair.flatten(axis, axis + 1)
            x[corner] = part
        return x


class Crop(Degradation):
    """Cells go dark from the border inwards; at T only the middle of the grid is left.

    Args:
        softness: the share of the whole time in which a cell goes dark. The nearer to 0, the more steps it takes to
            sample: across a jump no step is exact.

    Raises:
        ValueError: if it is not above 0.
    """

    def __init__(self, softness: float = 0.25) -> None:
        if not 0 < softness < math.inf:
            raise ValueError(f"the softness of a crop is a share of the time above 0, not {softness}")
        self.softness = softness

    def levels(self, shape: Shape) -> Float[Tensor, "*shape"]:
        """Distance from the middle, 0 there and 1 at the border: the largest along any axis."""
        rows = [_from_middle(size) for size in shape[1:]]
        grid = torch.stack(torch.meshgrid(*rows, indexing="ij"))
        return grid.amax(0).expand(shape).clone()

    def kept(self, level: Float[Tensor, "*#any"], t: Float[Tensor, "*#any"]) -> Float[Tensor, "..."]:
        """1, then on a straight line to 0."""
        return (1 - (t / T - (1 - level)) / self.softness).clamp(0, 1)


def _from_middle(size: int) -> Tensor:
    distance = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2).abs()
    return (distance - distance.min()) / max(distance.max().item() - distance.min().item(), 1.0)


@lru_cache(maxsize=64)
def cosines(size: int) -> Float[Tensor, "size size"]:
    """The orthonormal matrix of the discrete cosine transform, type II: a row for each frequency. Float64."""
    place, frequency = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)[:, None]
    matrix = (math.pi * (place + 0.5) * frequency / size).cos() * math.sqrt(2 / size)
    matrix[0] = math.sqrt(1 / size)
    return matrix


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    return torch.tensordot(x, matrix.to(x), dims=([axis], [1])).movedim(-1, axis)


def groups(levels: Float[Tensor, "*shape"]) -> Sequence[tuple[float, Tensor]]:
    """Level → which coordinates are of it, as indices into the flattened stream."""
    values, places = levels.flatten().unique(return_inverse=True)
    order, counts = places.argsort(stable=True), places.bincount().tolist()
    ends = list(itertools.accumulate(counts))
    return [(level, order[end - count : end]) for level, count, end in zip(values.tolist(), counts, ends, strict=True)]
