"""Streams in and out of a sequence of tokens: cutting and joining, embedding, positions, heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unidiff_core.foundation.stream import Stream
from unidiff_core.network.backbone import Port


def cut(x: Float[Tensor, "b *shape"], stream: Stream) -> Float[Tensor, "b n width"]:
    """A stream's tensor → tokens of its `token_width`, channel first within a patch."""
    match stream.layout:
        case "vector":
            return x[:, None]
        case "sequence":
            return x
        case "symbols":
            raise ValueError(f"the stream {stream} is of symbols, which are looked up in a table and not cut")
        case "grid":
            names = "uvw"[: len(stream.patch)]
            sizes = {f"{name}p": side for name, side in zip(names, stream.patch, strict=True)}
            split = " ".join(f"({name} {name}p)" for name in names)
            return rearrange(x, f"b c {split} -> b ({' '.join(names)}) (c {' '.join(sizes)})", **sizes)


def join(tokens: Float[Tensor, "b n width"], stream: Stream, grid: Sequence[int]) -> Float[Tensor, "b *shape"]:
    """Tokens of a stream's `token_width` on a token grid → its tensor, channel last within a patch."""
    match stream.layout:
        case "vector":
            return tokens[:, 0]
        case "sequence":
            return tokens
        case "symbols":
            raise ValueError(f"no network returns the symbols {stream}; a process predicts numbers for them")
        case "grid":
            names = "uvw"[: len(stream.patch)]
            sizes = {f"{name}p": side for name, side in zip(names, stream.patch, strict=True)}
            sizes |= dict(zip(names, grid, strict=True))
            whole = " ".join(f"({name} {name}p)" for name in names)
            pattern = f"b ({' '.join(names)}) ({' '.join(f'{name}p' for name in names)} c) -> b c {whole}"
            return rearrange(tokens, pattern, **sizes)


class StreamTokens(nn.Module):
    """One stream's way into the sequence and out of it: embedding (a table, for symbols), positions, head.

    The positions are a parameter on the stream's native token grid, whatever the grid of the data: they are resized
    (bilinear) on the way, so that going to another resolution changes no weight.
    """

    def __init__(self, port: Port, width: int) -> None:
        super().__init__()
        self.port = port
        vocabulary = port.seen.vocabulary
        self.embed = nn.Linear(port.seen.token_width, width) if vocabulary is None else nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(port.seen.num_tokens, width))
        self.head = nn.Linear(width, port.predicted.token_width)

    def tokens(self, x: Shaped[Tensor, "b *shape"]) -> Float[Tensor, "b n width"]:
        """A tensor of the stream → embedded tokens."""
        pieces = cut(x, self.port.seen) if self.port.seen.vocabulary is None else x.flatten(1)
        return self.embed(pieces) + self.resized_position(tuple(x.shape[1:]))

    def prediction(self, tokens: Float[Tensor, "b n width"], shape: tuple[int, ...]) -> Float[Tensor, "b *predicted"]:
        """Tokens of a tensor of this shape → prediction for it."""
        return join(self.head(tokens), self.port.predicted, self.port.seen.token_grid_of(shape))

    def resized_position(self, shape: tuple[int, ...]) -> Float[Tensor, "n width"]:
        """The positions for a tensor of this shape."""
        native, grid = self.port.seen.token_grid, self.port.seen.token_grid_of(shape)
        if grid == native:
            return self.position
        plane = self.position.T.reshape(1, -1, *native)  # (1, width, *native)
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(native)]
        return F.interpolate(plane, size=grid, mode=mode, align_corners=False).flatten(2)[0].T
