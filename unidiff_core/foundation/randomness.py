"""The randomness rule: every draw is a function of what it is for, never of where or with whom it is computed.

A draw is keyed by (seed, purpose, stream) and counted by (element, step, index in the global batch). So one process and
eight give the same run, a resumed run continues the same run, sample 7 is the same in a batch of 8 or of 800, and
adding a modality changes no other's noise. The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011), written in integer tensor operations, so that it gives the same bits on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_FEISTEL_ROUNDS = 6  # even: the halves end where they began


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four counter words and two key words → four random words, all 32-bit values held in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The 64-bit products wrap around in int64; masking after the shift gives the high word all the same.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((product1 >> 32) & _MASK) ^ c1 ^ k0, ((product0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = product1 & _MASK, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def key_of(seed: int, purpose: str, stream: str = "") -> tuple[int, int]:
    """Two 32-bit key words for a purpose (``"timestep"``, ``"noise"``) and a stream or modality name."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _words(seed: int, purpose: str, stream: str, step: int, index: Tensor, num_blocks: int) -> Tensor:
    """Random words ``[4, b, num_blocks]`` for samples `index` ``[b]``."""
    element = torch.arange(num_blocks, device=index.device)[None, :]
    sample = index.to(torch.int64)[:, None]
    counter = (element + 0 * sample, torch.full_like(element, step & _MASK), sample & _MASK, (sample >> 32) & _MASK)
    return torch.stack(torch.broadcast_tensors(*philox(counter, key_of(seed, purpose, stream))))


def uniform(seed: int, purpose: str, stream: str, step: int, index: Int64[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """One number in [0, 1) for each sample of `index`."""
    return _words(seed, purpose, stream, step, index, 1)[0, :, 0].double() * 2.0**-32


def normal(
    seed: int, purpose: str, stream: str, step: int, index: Int64[Tensor, " b"], shape: Sequence[int]
) -> Float32[Tensor, "b *shape"]:
    """Standard normal noise for samples `index`, by the Box–Muller transform.

    Args:
        seed: of the run.
        purpose: what the noise is for.
        stream: full name of the stream it belongs to.
        step: training or sampling step.
        index: of each sample in the global batch, int64.
        shape: of one sample.
    """
    count = math.prod(shape)
    words = _words(seed, purpose, stream, step, index, -(-count // 4)).double()
    radius = ((words[:2] + 1) * 2.0**-32).log_().mul_(-2).sqrt_()  # + 1: the logarithm of zero never happens
    angle = words[2:] * (2 * math.pi * 2.0**-32)
    values = torch.cat([radius * angle.cos(), radius * angle.sin()]).permute(1, 2, 0)  # (b, blocks, 4)
    return values.flatten(1)[:, :count].reshape(len(index), *shape).float()


@dataclass(frozen=True)
class Draws:
    """Randomness for one purpose, stream and step: nothing is drawn before it is asked for, and nothing twice.

    Asked again for the same kind and shape it gives the same numbers; numbers that are to be independent of those are
    asked of `named`.

    Attributes:
        seed: of the run.
        purpose: what they are for.
        stream: full name of the stream that they belong to.
        step: training or sampling step.
        index: of each sample in the global batch.
    """

    seed: int
    purpose: str
    stream: str
    step: int
    index: Int64[Tensor, " b"]
    _drawn: dict[tuple[str, tuple[int, ...]], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def normal(self, shape: Sequence[int]) -> Float32[Tensor, "b *shape"]:
        """Standard normal numbers, `shape` for each sample."""
        return self._draw("normal", tuple(shape))

    def uniform(self, shape: Sequence[int]) -> Float64[Tensor, "b *shape"]:
        """Numbers in [0, 1), `shape` for each sample, independent of the normal ones; 2⁻³² apart."""
        return self._draw("uniform", tuple(shape))

    def named(self, name: str) -> Draws:
        """Draws for a part of the purpose, independent of these and of those by other names."""
        return replace(self, purpose=f"{self.purpose}/{name}", _drawn={})

    def _draw(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        if (kind, shape) not in self._drawn:
            draw = normal if kind == "normal" else _uniforms
            self._drawn[kind, shape] = draw(self.seed, self.purpose, self.stream, self.step, self.index, shape)
        return self._drawn[kind, shape]


def _uniforms(seed: int, purpose: str, stream: str, step: int, index: Tensor, shape: Sequence[int]) -> Tensor:
    count = math.prod(shape)
    words = _words(seed, f"{purpose}/uniform", stream, step, index, -(-count // 4))  # (4, b, blocks)
    values = words.permute(1, 2, 0).flatten(1)[:, :count].double() * 2.0**-32
    return values.reshape(len(index), *shape)


def permutation(seed: int, purpose: str, step: int, size: int, places: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """Where a permutation of ``range(size)`` takes `places`: the order of an epoch, say.

    A Feistel network over the bits of `size`, walked until it falls inside (Black and Rogaway, "Ciphers with arbitrary
    finite domains", CT-RSA 2002): any part of it is computed alone, so that a billion samples need no table.
    """
    bits = max(2, (size - 1).bit_length())
    key = key_of(seed, purpose)
    values = _shuffled_bits(places.to(torch.int64), bits, key, step)
    while (outside := values >= size).any():
        values[outside] = _shuffled_bits(values[outside], bits, key, step)
    return values


def _shuffled_bits(values: Tensor, bits: int, key: tuple[int, int], step: int) -> Tensor:
    """A permutation of the numbers of so many bits. Its halves may differ by a bit; they trade places each round."""
    high, low = bits - bits // 2, bits // 2
    for i in range(_FEISTEL_ROUNDS):
        left, right = values >> low, values & (1 << low) - 1
        rows = (right, *(torch.full_like(right, word) for word in (i, step & _MASK, step >> 32)))
        values = right << high | left ^ philox(rows, key)[0] & (1 << high) - 1
        high, low = low, high
    return values
