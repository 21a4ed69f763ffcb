"""One codec under test: its samples, and what it gave of them."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unidiff_core.codec.codec import Codec, Draw, Raw
from unidiff_core.foundation import randomness

TOLERANCE = 1e-4
"""Largest difference of tensors that should agree, relative to their largest element."""
SAMPLE_TOLERANCE = 1e-2
"""The same for raw samples, relative to the smallest distance between two of those given."""

Distance = Callable[[Raw, Raw], float]


class Broken(Exception):  # noqa: N818  it is no error of the program
    """Raised by a clause: what was seen, and how to fix it."""

    def __init__(self, seen: str, fix: str) -> None:
        super().__init__(seen)
        self.seen, self.fix = seen, fix


@dataclass
class Case:
    """A codec, samples of its kind, and what it made of them."""

    codec: Codec
    raws: list[Raw]
    distance: Distance
    remarks: list[str] = field(default_factory=list)

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        """What `encode` gives."""
        return self.codec.encode(self.raws)

    @cached_property
    def latent(self) -> dict[str, Tensor]:
        """What `latent` makes of it."""
        return self.codec.latent(self.stored, draw_from(0))

    @cached_property
    def decoded(self) -> list[Raw]:
        """What that decodes to."""
        return self.codec.decode(self.latent)

    @cached_property
    def sample_tolerance(self) -> float:
        """Smallest distance between two different given samples, times `SAMPLE_TOLERANCE`."""
        pairs = [self.distance(a, b) for i, a in enumerate(self.raws) for b in self.raws[:i]]
        return SAMPLE_TOLERANCE * min((value for value in pairs if 0 < value < float("inf")), default=1.0)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, from the attributes of the same names."""
        return {name: getattr(self.codec, name) for name in inspect.signature(type(self.codec)).parameters}

    def fresh(self, **changes: Any) -> Codec:
        """A codec like this one, just constructed."""
        return type(self.codec)(**self.arguments | changes)


def draw_from(first: int) -> Draw:
    """Noise as the program draws it: a function of the stream and each sample's index, here from `first` on."""

    def draw(stream: str, shape: tuple[int, ...]) -> Tensor:
        index = torch.arange(first, first + shape[0])
        return randomness.normal(0, "contract", stream, 0, index, shape[1:])

    return draw


def streams(codec: Codec) -> str:
    """The declared streams, for a message."""
    return ", ".join(f"{name} {stream}" for name, stream in codec.streams.items())


def use(case: Case, codec: Codec) -> None:
    """Every half of the codec once, so that all it loads is loaded."""
    codec.decode(codec.latent(codec.encode(case.raws), draw_from(0)))


def sample_of(tensors: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    """Sample i, as a batch of one."""
    return {name: value[i : i + 1] for name, value in tensors.items()}


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float) -> str | None:
    """The first name at which two mappings differ by more than the tolerance."""
    for name in [*a, *b]:
        if name not in a or name not in b or a[name].shape != b[name].shape:
            return name
        x, y = a[name].double().nan_to_num(), b[name].double().nan_to_num()
        if x.numel() and (x - y).abs().max() > tolerance * y.abs().max():
            return name
    return None


def stray_tensors(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Names of the tensors that are not on the meta device, and of the modules in lists and dictionaries."""
    for name, value in attributes.items():
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        for item in flat(value):
            if isinstance(item, nn.Module) or (isinstance(item, Tensor) and item.device.type != "meta"):
                yield name
                break


def flat(value: Any) -> Iterator[Any]:
    """A value, and what is in it if it is a list, a tuple or a dictionary."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)
    else:
        yield value


def global_states() -> dict[str, Any]:
    """The global random states of torch, numpy and Python."""
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(legacy=True), "random": random.getstate()}


def same_state(a: Any, b: Any) -> bool:
    """Whether two of them are equal."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random, and put their states back."""
    states = global_states()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states["torch"])
        np.random.set_state(states["numpy"])
        random.setstate(states["random"])
