"""The real data of an evaluation: which part of the test samples, and what the model's codecs make of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from unidiff_core.codec.codec import Codec, Raw
from unidiff_core.evaluation.metric import Reference, load_samples

Part = Literal["all", "test", "validation"]
BATCH = 256


def load_reference(
    model: Any,
    codecs: Mapping[str, Codec],
    train: str,
    test: str,
    *,
    source: str | None = None,
    part: Part = "all",
    validation_share: float = 1 / 3,
) -> Reference:
    """Training samples and the wanted part of the test samples.

    Args:
        model: whose codecs reconstruct and encode, if it has `encode` and `decode`.
        codecs: of the modalities that are read.
        train: raw training shards; those of the test, where the model was trained on none of these data.
        test: raw test shards.
        source: a regular expression that finds in a sample's key what it was made from.
        part: which of the test samples.
        validation_share: of the sources that are the validation part.

    Raises:
        ValueError: if the shards do not fit, or the part is empty.
    """
    tests = load_samples(test, codecs, source=source)
    names = tests.sources or [str(i) for i in range(len(tests))]
    rows = [i for i, name in enumerate(names) if part in ("all", part_of(name, validation_share))]
    if not rows:
        raise ValueError(f"no test sample of {test} is of the {part} part; there are {len(tests)} in all")
    chosen = tests if part == "all" else tests.rows(rows)
    trained = tests if train == test else load_samples(train, codecs, missing="keep", source=source)
    if not hasattr(model, "encode"):
        return Reference(trained, chosen)
    return Reference(trained, chosen, reconstructing(model), encoding(model))


def part_of(source: str, validation_share: float) -> Part:
    """The part of a source: a function of its name, so that it never changes sides."""
    number = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big")
    return "validation" if number < validation_share * 2**64 else "test"


def reconstructing(model: Any) -> Callable[[str, Sequence[Raw]], list[Raw]]:
    """(modality, samples) → the same through a model's codec."""

    def reconstruct(name: str, raws: Sequence[Raw]) -> list[Raw]:
        return [raw for part in _parts(raws) for raw in model.decode(model.encode({name: part}), [name])[name]]

    return reconstruct


def encoding(model: Any) -> Callable[[str, Sequence[Raw]], np.ndarray]:
    """(modality, samples) → a model's latents, all streams in a row ``[n, d]``.

    Each stream is divided by the root of the number of its elements, so that streams count alike.
    """

    def encode(name: str, raws: Sequence[Raw]) -> np.ndarray:
        rows = []
        for part in _parts(raws):
            latents = [value.flatten(1).float().cpu() for value in model.encode({name: part}).values()]
            rows.append(torch.cat([value / value.shape[1] ** 0.5 for value in latents], dim=1).numpy())
        return np.concatenate(rows)

    return encode


def _parts(raws: Sequence[Raw]) -> list[list[Raw]]:
    return [list(raws[start : start + BATCH]) for start in range(0, len(raws), BATCH)]
