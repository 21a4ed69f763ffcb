"""Latents and times: flat mappings by name, which every room passes to the next."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

Latents = Mapping[str, Tensor]
"""``"<modality>.<stream>" -> [b, ...]``. Numbers, or symbols as int64."""

Times = Mapping[str, Tensor]
"""``"<modality>" -> [b]``, in 0 (clean) .. T (noise). A modality that is dropped is in neither mapping."""

Conditions = Mapping[str, Tensor]
"""``name -> [b, ...]``: side inputs that reach the backbone untouched. It declares which it takes."""


def modality_of(stream: str) -> str:
    """The modality of a full stream name, ``"<modality>.<stream>"``."""
    return stream.partition(".")[0]


def stream_of(stream: str) -> str:
    """The stream's own name, of a full one."""
    return stream.partition(".")[2]


def check_latents(latents: Latents, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check latents that someone gives.

    Args:
        latents: full stream name → ``[b, *shape]``.
        shapes: full stream name → shape of one sample, of every stream that is wanted.

    Raises:
        ValueError: if one is lacking, of another shape, not finite, or there are more of one than of another.
    """
    for key, shape in shapes.items():
        value = latents.get(key)
        if not isinstance(value, Tensor) or tuple(value.shape[1:]) != tuple(shape):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            known = ", ".join(f"{name} {tuple(row)}" for name, row in shapes.items())
            said = f"{key!r} is given as {found}" if key in latents else f"the latents of {key!r} are lacking"
            raise ValueError(f"{said}; latents are tensors [samples, ...] of {known}")
        check_finite_latents(key, value)
    if len({len(latents[key]) for key in shapes}) > 1:
        rows = ", ".join(f"{len(latents[key])} of {key}" for key in shapes)
        raise ValueError(f"a sample has latents of each stream, but there are {rows}")


def check_finite_latents(key: str, value: Tensor) -> None:
    """Check that latents are finite.

    Raises:
        ValueError: if not; says how many.
    """
    if value.is_floating_point() and (wrong := int((~value.isfinite()).sum())):
        raise ValueError(f"{wrong} of {value.numel()} numbers of the latents of {key!r} are not finite")


def of_modality(latents: Latents, modality: str) -> dict[str, Tensor]:
    """A modality's tensors, under their own stream names."""
    return {stream_of(key): value for key, value in latents.items() if modality_of(key) == modality}


def dropped(latents: Latents, times: Times, names: Collection[str]) -> tuple[Latents, Times]:
    """Latents and times without some modalities."""
    kept = {key: value for key, value in latents.items() if modality_of(key) not in names}
    return kept, {name: t for name, t in times.items() if name not in names}


def cast(x: Shaped[Tensor, "*shape"], dtype: torch.dtype) -> Shaped[Tensor, "*shape"]:
    """Numbers in another dtype. Symbols stay as they are: half precision would merge those above 256."""
    return x.to(dtype) if x.is_floating_point() else x


def over(values: Shaped[Tensor, " b"], x: Shaped[Tensor, "b *shape"]) -> Shaped[Tensor, "b *ones"]:
    """One value a sample, with trailing dimensions of 1, so that it meets `x` elementwise."""
    return values.reshape(-1, *[1] * (x.ndim - 1))
