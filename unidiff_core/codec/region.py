"""Regions of a latent: parts of its streams, in their own coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from unidiff_core.foundation.stream import Stream


def mask_of(
    region: Any, streams: Mapping[str, Stream], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Bool[Tensor, "*shape"]]:
    """``{ae: [[0, 4], [2, 6]]}`` → where it lies: a range, the end not with it, for each size of a stream's grid.

    A stream that is not named is in the region as a whole: it may tell of what is in it.

    Args:
        region: stream → ranges; of one size the range itself.
        streams: stream → declaration.
        shapes: stream → shape of a latent.

    Raises:
        ValueError: if it is no such mapping, or a range lies outside; says what would be.
    """
    sizes = {name: grid_of(stream, shapes[name]) for name, stream in streams.items()}
    known = ", ".join(f"{name} {list(size)}" for name, size in sizes.items())
    if not isinstance(region, Mapping) or not region or not region.keys() <= streams.keys():
        raise ValueError(
            f"the region {region!r} is no mapping from streams to a range [from, to] for each size of their grids, "
            f"which are {known}"
        )
    masks = {name: torch.ones(shapes[name], dtype=torch.bool) for name in streams}
    for name, rows in region.items():
        ranges = [rows] if _is_range(rows) else rows
        if not isinstance(ranges, Sequence) or len(ranges) != len(sizes[name]) or not all(map(_is_range, ranges)):
            raise ValueError(
                f"{rows!r} is no range [from, to] for each size of the stream {name!r}, which has the grid "
                f"{list(sizes[name])}"
            )
        if any(not 0 <= a < b <= size for (a, b), size in zip(ranges, sizes[name], strict=True)):
            raise ValueError(f"the ranges {rows!r} are not within the grid {list(sizes[name])} of the stream {name!r}")
        inside = torch.zeros(sizes[name], dtype=torch.bool)
        inside[tuple(slice(a, b) for a, b in ranges)] = True
        masks[name] = over_grid(inside, streams[name], shapes[name])
    return masks


def grid_of(stream: Stream, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of a latent of this shape that are places, not channels; none of a vector."""
    match stream.layout:
        case "grid":
            return shape[1:]
        case "sequence":
            return shape[:1]
        case "symbols":
            return shape
        case _:
            return ()


def over_grid(inside: Bool[Tensor, "*grid"], stream: Stream, shape: tuple[int, ...]) -> Bool[Tensor, "*shape"]:
    """The same for every channel."""
    rows = inside[:, None] if stream.layout == "sequence" else inside
    return rows.expand(shape).clone()


def _is_range(value: Any) -> bool:
    is_row = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return is_row and all(isinstance(row, int) for row in value)
