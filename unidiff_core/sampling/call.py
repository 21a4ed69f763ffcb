"""A sampling call: what is given, raw or as latents, in batches; what comes back, raw or as latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from unidiff_core.codec.codec import Raw
from unidiff_core.foundation.argument import check_mapping, check_whole
from unidiff_core.foundation.latents import Latents, modality_of
from unidiff_core.sampling.given import Given, conditions_of, repeated, shifted
from unidiff_core.sampling.loop import OnStep
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import SpecError, TimestepSpec


class LatentSampler(Protocol):
    """What a call needs of a model: `UniDiffuser` has it."""

    modalities: Any
    """Name → modality."""
    sampling: SamplingOptions
    """How it is sampled where nothing else is said."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Full stream name → shape of its latents."""

    def encode(self, raws: Mapping[str, Sequence[Raw]], *, seed: int = 0, first_index: int = 0) -> dict[str, Tensor]:
        """Raw samples → latents."""

    def sample_latents(
        self,
        spec: TimestepSpec | str | Mapping[str, Any],
        supplied: Latents,
        *,
        num: int,
        options: SamplingOptions | None = None,
        **more: Any,
    ) -> dict[str, Tensor]:
        """Latents in, latents out, all at once."""


@dataclass(frozen=True)
class Values:
    """Raw samples by modality, and latents by full stream name, of one number of samples.

    Attributes:
        raws: modality → list.
        latents: full stream name → ``[num, ...]``.
    """

    raws: Mapping[str, Sequence[Raw]] = field(default_factory=dict)
    latents: Latents = field(default_factory=dict)

    @classmethod
    def split(cls, given: Given) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is given by modality, and by full stream name."""
        latents: dict[str, Any] = {key: value for key, value in given.items() if "." in str(key)}
        return {key: value for key, value in given.items() if key not in latents}, latents

    @property
    def names(self) -> set[str]:
        """Modalities of which there is a value."""
        return {*self.raws, *map(modality_of, self.latents)}

    def encoded(self, model: LatentSampler, rows: slice, seed: int, first_index: int = 0) -> dict[str, Tensor]:
        """Latents of some of the samples, the first of which has the number `first_index`."""
        raws = {name: values[rows] for name, values in self.raws.items()}
        made = model.encode(raws, seed=seed, first_index=first_index + rows.start) if raws else {}
        return made | {key: value[rows] for key, value in self.latents.items()}


def values_of(given: Given, num: int | None, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Values, int]:
    """What is given for `num` samples: as many as are given, or one, if it is None.

    Args:
        given: modality → one raw sample or several; or full stream name → latents ``[b, ...]`` of one or several.
        num: of samples.
        shapes: full stream name → shape of one sample.

    Raises:
        SpecError: if numbers or shapes do not fit, or a modality is given in part, or twice.
    """
    check_mapping("given", given, "modality → sample or samples, or stream → latents")
    if num is not None:
        check_whole("num", num, at_least=1)
    raws, latents = Values.split(given)
    for key, value in latents.items():
        if key not in shapes or not isinstance(value, Tensor) or tuple(value.shape[1:]) != tuple(shapes[key]):
            known = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SpecError(f"{key!r} is given as {found}; latents are tensors [samples, ...] of {known}")
    for name in map(modality_of, latents):
        absent = [key for key in shapes if modality_of(key) == name and key not in latents]
        if absent or name in raws:
            what = f"without {absent[0]}" if absent else "raw and as latents"
            raise SpecError(f"{name!r} is given {what}; give all of its streams, or one raw value")
        if len(nums := {len(value) for key, value in latents.items() if modality_of(key) == name}) > 1:
            raise SpecError(f"the streams of {name!r} are given of {' and '.join(map(str, sorted(nums)))} samples")
    num = num if num is not None else max(map(len, latents.values()), default=None)
    lists, num = repeated(raws, num)
    for key, value in latents.items():
        if len(value) not in (1, num):
            raise SpecError(f"{len(value)} latents of {key!r} are given for {num} samples; give one, or {num}")
    return Values(lists, {key: value.expand(num, *value.shape[1:]) for key, value in latents.items()}), num


def batches(
    model: LatentSampler,
    spec: TimestepSpec,
    given: Given,
    num: int | None,
    options: SamplingOptions,
    *,
    states: Latents | None = None,
    against: Given | None = None,
    on_step: OnStep | None = None,
    first_index: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Latents of all streams, batch by batch; the first sample has the number `first_index`, which decides its noise.

    Raises:
        SpecError: if spec, given, states and `against` do not fit together.
    """
    states = {} if states is None else states
    check_mapping("states", states, "stream → latents at the start of its path")
    for key, value in states.items():
        if not isinstance(value, Tensor):
            raise SpecError(f"the state of {key!r} is a tensor [samples, ...], not {value!r}")
    num = num if num is not None else max(map(len, states.values()), default=None)
    values, num = values_of(given, num, model.shapes)
    avoided, _ = values_of(against or {}, num, model.shapes)
    spec.check_supplied(values.names, {*map(modality_of, states)}, avoided.names)
    backbone = getattr(model, "backbone", None)
    device = getattr(model, "device", torch.device("cpu"))
    conditions = conditions_of(options.conditions, backbone.conditions if backbone else (), num, device)
    starts = range(0, num, options.batch_size)
    for i, start in enumerate(starts):
        rows = slice(start, min(start + options.batch_size, num))
        more: dict[str, Any] = {"states": {key: value[rows] for key, value in states.items()}} if states else {}
        if avoided.names:
            more["against"] = avoided.encoded(model, rows, options.seed, first_index)
        yield model.sample_latents(
            spec,
            values.encoded(model, rows, options.seed, first_index),
            num=rows.stop - start,
            first_index=first_index + start,
            options=replace(options, conditions={name: value[rows] for name, value in conditions.items()}),
            on_step=shifted(on_step, i * options.steps, len(starts) * options.steps),
            **more,
        )


def latents_of(
    model: LatentSampler,
    spec: TimestepSpec | str | Mapping[str, Any],
    given: Given,
    num: int | None = None,
    *,
    options: SamplingOptions | None = None,
    **more: Any,
) -> dict[str, Tensor]:
    """Sample latents ``[num, ...]`` of all streams of what a spec solves.

    Args:
        model: to sample from.
        spec: as in `UniDiffuser.sample`.
        given: raw or as latents.
        num: of samples.
        options: how to sample; as the model says if not given.
        **more: `states`, `against`, `on_step` and `first_index` of `batches`; options by name.
    """
    parts = {key: more.pop(key) for key in ("states", "against", "on_step", "first_index") if key in more}
    spec = TimestepSpec.parse(spec, model.modalities)
    options = SamplingOptions.changed(options or model.sampling, more, "latents_of()")
    rows = list(batches(model, spec, given, num, options, **parts))
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0] if modality_of(key) in spec.solved}
