"""Filling in: whatever is missing of a row, given whatever is there. Each row is a timestep spec of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from unidiff_core.codec.codec import Raw
from unidiff_core.foundation.latents import Latents
from unidiff_core.foundation.progress import tracked
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import TimestepSpec


class Model(Protocol):
    """What filling in needs of a model: `UniDiffuser` has it."""

    modalities: Any
    """By name."""
    sampling: SamplingOptions
    """How it is sampled where nothing else is said."""

    def encode(self, raws: Mapping[str, Sequence[Raw]], *, seed: int = 0, first_index: int = 0) -> dict[str, Tensor]:
        """Raw samples → latents."""

    def sample_latents(
        self, spec: TimestepSpec, supplied: Latents, *, num: int, options: SamplingOptions | None = None, **more: Any
    ) -> dict[str, Tensor]:
        """Latents of a spec."""

    def decode(self, latents: Latents, names: Sequence[str]) -> dict[str, list[Raw]]:
        """Latents → raw samples."""


def fill_in(
    model: Model,
    rows: Sequence[Mapping[str, Raw | None]],
    num: int = 1,
    *,
    options: SamplingOptions | None = None,
    **changes: Any,
) -> list[dict[str, list[Raw]]]:
    """Samples of what each row lacks, jointly, given what it has: ``"missing, missing | given, given"``.

    Rows may lack different modalities: each has its own spec, and a modality that is held has one time for all samples
    of a call, so that each row is a call of `num` samples. Sample j of row i is number i·num + j: other rows change
    nothing of it.

    Args:
        model: of the modalities.
        rows: modality → raw sample; None, or no entry, where it is missing.
        num: samples of each row.
        options: how to sample; as the model says if not given.
        **changes: options by name, in place of those of `options`.

    Returns:
        For each row: missing modality → `num` raw samples. Empty for a row that lacks nothing.

    Raises:
        ValueError: if a row names what is no modality.
    """
    options = SamplingOptions.changed(options or model.sampling, changes, "fill_in()")
    return [_filled(model, i, row, num, options) for i, row in enumerate(tracked(rows, "fill in", len(rows)))]


def _filled(
    model: Model, i: int, row: Mapping[str, Raw | None], num: int, options: SamplingOptions
) -> dict[str, list[Raw]]:
    known = list(model.modalities)
    if wrong := sorted(row.keys() - {*known}):
        raise ValueError(f"row {i} has {wrong[0]!r}, which is no modality; there are {', '.join(known)}")
    given = {name: row[name] for name in known if row.get(name) is not None}
    missing = [name for name in known if name not in given]
    if not missing:
        return {}
    spec = TimestepSpec.parse({name: 0.0 if name in given else [1.0, 0.0] for name in known}, known)
    first = i * num
    supplied = model.encode({name: [raw] * num for name, raw in given.items()}, seed=options.seed, first_index=first)
    latents = model.sample_latents(spec, supplied, num=num, options=options, first_index=first)
    return model.decode(latents, missing)
