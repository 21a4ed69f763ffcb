"""A stream: one tensor kind of a latent, and how it is cut into tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stream:
    """What a codec declares of one tensor of its latent, without the batch dimension.

    `shape` is the *native* shape: ``(channels, *grid)`` for a grid of 1 to 3 dimensions, ``(length, channels)`` for a
    sequence, ``(channels,)`` for a vector. A stream of symbols has int64 ids in place of channels: ``grid`` for 1 to 3
    dimensions. A tensor may come on another grid than the native one (another image
    resolution): its tokens come from its actual grid, and positions are resized to it.

    Use the constructors `grid`, `sequence`, `vector` and `symbols`.
    """

    shape: tuple[int, ...]
    layout: Literal["grid", "sequence", "vector", "symbols"]
    patch: tuple[int, ...] = ()
    dtype: str = "float32"
    vocabulary: int | None = None
    """Number of symbols, of ids 0 to one less, if the stream is of symbols; else None."""

    @classmethod
    def grid(cls, *shape: int, patch: int | tuple[int, ...] = 1) -> Stream:
        """A grid ``(channels, *sizes)`` of 1, 2 or 3 dimensions, cut into patches of `patch` cells a side."""
        dims = len(shape) - 1
        patches = (patch,) * dims if isinstance(patch, int) else tuple(patch)
        if not 1 <= dims <= 3 or len(patches) != dims:
            raise ValueError(f"a grid stream is (channels, 1 to 3 sizes) with a patch per size, not {shape} / {patch}")
        if any(size % side for size, side in zip(shape[1:], patches, strict=True)):
            raise ValueError(f"the grid {shape[1:]} does not divide into patches of {patches}")
        return cls(tuple(shape), "grid", patches)

    @classmethod
    def sequence(cls, length: int, channels: int) -> Stream:
        """A sequence of `length` steps, one token each."""
        return cls((length, channels), "sequence")

    @classmethod
    def vector(cls, channels: int) -> Stream:
        """One vector, one token."""
        return cls((channels,), "vector")

    @classmethod
    def symbols(cls, *shape: int, vocabulary: int) -> Stream:
        """Ids 0 to `vocabulary` − 1 on a grid of 1 (a sequence of words, say), 2 or 3 dimensions, one token each."""
        if not 1 <= len(shape) <= 3 or vocabulary < 1:
            raise ValueError(f"symbols are on a grid of 1 to 3 sizes, of a vocabulary, not {shape} of {vocabulary}")
        return cls(tuple(shape), "symbols", dtype="int64", vocabulary=vocabulary)

    @property
    def channels(self) -> int:
        """Numbers per grid cell, per step, or in the vector; 1 for symbols."""
        match self.layout:
            case "grid":
                return self.shape[0]
            case "symbols":
                return 1
            case _:
                return self.shape[-1]

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Shape of the native token grid: patches per side, ``(length,)`` for a sequence, ``(1,)`` for a vector."""
        return self.token_grid_of(self.shape)

    def token_grid_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Token grid of a tensor of this stream whose shape (without batch) is `shape`."""
        match self.layout:
            case "grid":
                return tuple(size // side for size, side in zip(shape[1:], self.patch, strict=True))
            case "sequence":
                return (shape[0],)
            case "vector":
                return (1,)
            case "symbols":
                return tuple(shape)

    def shape_on(self, token_grid: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (without batch) of a tensor of this stream whose tokens lie on this grid."""
        match self.layout:
            case "grid":
                return (self.channels, *(n * side for n, side in zip(token_grid, self.patch, strict=True)))
            case "sequence":
                return (math.prod(token_grid), self.channels)
            case "vector":
                return self.shape
            case "symbols":
                return token_grid

    @property
    def token_width(self) -> int:
        """Numbers in one token, before embedding."""
        return self.channels * math.prod(self.patch)

    @property
    def num_tokens(self) -> int:
        """Tokens at the native shape."""
        return math.prod(self.token_grid)

    def __str__(self) -> str:
        text = "×".join(map(str, self.shape))
        if self.vocabulary is not None:
            return f"{text} of {self.vocabulary} symbols"
        return f"{text} /{'×'.join(map(str, self.patch))}" if any(side > 1 for side in self.patch) else text
