"""What processes over symbols share: a vocabulary, how many are corrupted at a time and in which order, drawing."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.stream import Stream
from unidiff_core.foundation.time import T
from unidiff_core.process.process import ForwardProcess

NOTHING = -1e300
"""The logarithm of zero, as far as sums of logits are concerned: infinite ones would make guidance 0/0."""

_DECIMALS = 4
"""Whole steps of whole lengths need three; what single precision adds to a time is below the fourth."""


def num_corrupted(t: Float[Tensor, " b"], length: int) -> Int64[Tensor, " b"]:
    """How many of `length` symbols are corrupted at a time: k(t) = ⌈length·t/T⌉.

    None at 0, all at T, one at least between; a uniform time in (0, T] makes every number equally likely. What rounding
    adds to a whole number is taken off first.
    """
    number = (t.double() * length / T).round(decimals=_DECIMALS).ceil().long()
    return torch.where(t > 0, number.clamp(min=1), 0)


def count_at(t: float, length: int) -> int:
    """`num_corrupted` at one time."""
    return max(math.ceil(round(length * t / T, _DECIMALS)), int(t > 0))


def shape_size(shape: Sequence[int]) -> int:
    """Symbols in a tensor of this shape."""
    return math.prod(shape)


def ranks(draws: Draws, shape: Sequence[int]) -> Int64[Tensor, "b *shape"]:
    """The place of each symbol in the order in which a sample's symbols are corrupted: one permutation a draw.

    Those that are corrupted at a time are corrupted at every later one, as long as the draw is the same.
    """
    values = draws.named("order").uniform(shape).flatten(1)
    return ranks_of(values).reshape(-1, *shape)


def ranks_of(values: Float64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
    """The place of each value of a row when they are sorted; of equal ones the first comes first."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)


def drawn(logits: Float[Tensor, "n v"], uniform: Float64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """A symbol for each row, by its cumulative distribution in double precision and one uniform number.

    No noise for each symbol of the vocabulary is made; in single precision that would draw at a lower temperature
    (Zheng et al. 2024, https://arxiv.org/abs/2409.02908).
    """
    edges = logits.double().softmax(-1).cumsum(-1)
    place = torch.searchsorted(edges, (uniform * edges[:, -1])[:, None], right=True)[:, 0]
    return place.clamp(max=logits.shape[-1] - 1)


def chosen(
    mask: Bool[Tensor, "b *shape"], logits: Float[Tensor, "b *shape v"], draws: Draws
) -> tuple[Int64[Tensor, " n"], Float[Tensor, "n v"]]:
    """Symbols drawn for the places in `mask` and no others, and the logits that they were drawn of."""
    rows = logits[mask]
    return drawn(rows, draws.named("what").uniform(mask.shape[1:])[mask]), rows


class Symbols(ForwardProcess, ABC):
    """A process over symbols: int64 ids ``[b, *grid]`` below a vocabulary.

    Args:
        vocabulary: number of symbols; that of the stream that the process is given to, if not given.
    """

    estimate = "logits"
    is_discrete: ClassVar[bool] = True
    inverts: ClassVar[bool] = False

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()
        if vocabulary is not None and vocabulary < 2:
            raise ValueError(
                f"a vocabulary has at least 2 symbols, not {vocabulary}: with one there is nothing to learn"
            )
        self.vocabulary = vocabulary

    @property
    def size(self) -> int:
        """Symbols in the vocabulary.

        Raises:
            ValueError: if nobody said.
        """
        if self.vocabulary is None:
            raise ValueError(
                f"{type(self).__name__} knows no vocabulary: give it to a modality, or say {type(self).__name__}(40)"
            )
        return self.vocabulary

    def seen(self, stream: Stream) -> Stream:
        """The stream, whose vocabulary becomes this process's if it has none.

        Raises:
            ValueError: if it is of numbers, or of another vocabulary.
        """
        name = type(self).__name__
        if stream.vocabulary is None:
            raise ValueError(
                f"{name} is for symbols, and the stream {stream} is of numbers: give the modality a process for "
                "numbers, such as Gaussian"
            )
        if stream.vocabulary < 2:
            raise ValueError(
                f"a vocabulary has at least 2 symbols, and the stream is {stream}: leave it out of the model"
            )
        if self.vocabulary is None:
            self.vocabulary = stream.vocabulary
        if self.vocabulary != stream.vocabulary:
            raise ValueError(
                f"{name} is over {self.vocabulary} symbols, and the stream is {stream}: give {name} the vocabulary "
                f"{stream.vocabulary}, or none; streams of different vocabularies are modalities of their own"
            )
        return stream

    def predicted(self, stream: Stream) -> Stream:
        """A logit for each symbol, on the stream's grid."""
        assert stream.vocabulary is not None
        if len(stream.shape) == 1:
            return Stream.sequence(stream.num_tokens, stream.vocabulary)
        return Stream.grid(stream.vocabulary, *stream.shape)

    def clean(
        self, corrupted: Int64[Tensor, "b *shape"], prediction: Float[Tensor, "b *predicted"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape v"]:
        """The logits, in single precision at least, vocabulary last; what is known already is not put in here."""
        prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        return prediction if corrupted.ndim == 2 else prediction.movedim(1, -1)

    def prediction_of(
        self, corrupted: Int64[Tensor, "b *shape"], clean: Float[Tensor, "b *shape v"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *predicted"]:
        """The logits, laid out as the network returns them."""
        return clean if corrupted.ndim == 2 else clean.movedim(-1, 1)

    def cross_entropy(
        self, prediction: Float[Tensor, "b *predicted"], target: Int64[Tensor, "b *shape"]
    ) -> Float[Tensor, "b *shape"]:
        """−log p of each symbol, in nats."""
        logits = prediction.movedim(-1, 1) if target.ndim == 2 else prediction
        return F.cross_entropy(logits, target, reduction="none")

    def check_ids(self, ids: Int64[Tensor, "b *shape"]) -> None:
        """Check that ids are of this vocabulary.

        Raises:
            ValueError: if one is not; names it.
        """
        if wrong := ids[(ids < 0) | (ids >= self.size)][:1].tolist():
            raise ValueError(
                f"the id {wrong[0]} is out of range: {type(self).__name__} is over {self.size} symbols, ids 0 to "
                f"{self.size - 1}; the codec gives it, or the latents were encoded by another one"
            )

    def check_state(self, x: Shaped[Tensor, "b *state"], t: float) -> None:
        """Check that it is of ids of this vocabulary."""
        if x.dtype != torch.int64:
            raise ValueError(f"{type(self).__name__} is over symbols, and this is of {x.dtype}; give ids as int64")
        self.check_ids(x)

    def extra_repr(self) -> str:
        """For printing the module."""
        return f"{self.vocabulary} symbols"
