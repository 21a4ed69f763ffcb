"""Inpainting: part of a stream is sampled, given the rest of it; outpainting is the same the other way round."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unidiff_core.application.chain import used
from unidiff_core.foundation.latents import modality_of, of_modality
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.process.process import ForwardProcess
from unidiff_core.sampling.call import Values, values_of
from unidiff_core.sampling.given import Given, conditions_of, shifted
from unidiff_core.sampling.loop import OnStep
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import Path, SpecError, TimestepSpec
from unidiff_core.system import UniDiffuser

JUMPS = 10
"""Stretches of the path that are gone through again each, where there is resampling."""


def inpaint(
    model: UniDiffuser,
    spec: TimestepSpec | str | Mapping[str, Any],
    given: Given,
    regions: Mapping[str, Any],
    num: int | None = None,
    *,
    outside: bool = False,
    resamples: int = 1,
    kept_at: float = 0.0,
    latents: bool = False,
    options: SamplingOptions | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Sample part of what a spec solves, given the other part.

    ``inpaint(model, "image | text", {"image": x, "text": "a seven"}, {"image": [0, 16, 32, 32]})``.

    **Numbers.** After each step what is known is put back, as noisy as the time is (Song et al. 2020, arXiv
    2011.13456, section I.2). That is biased: at each time the free part is moved as if the known one were drawn, not
    known, so that they agree less than they should. `resamples` lessens it: each tenth of the path is noised afresh and
    gone through so often (RePaint, Lugmayr et al. 2022, arXiv 2201.09865), which costs as much more.

    A spec that starts below T, ``image@0.6``, changes what is in the region, from the given value noised to there. With
    `kept_at` the rest is a noisy condition, as ``text@0.2`` is one: it is put back down to that time alone, and below
    it is sampled with the region, so that both agree and the rest comes back as nearly as the noise lets it.

    **Symbols of the masked process.** What is free is hidden and the rest is not: exact, if the network is.

    Args:
        model: to sample from.
        spec: as in `UniDiffuser.sample`.
        given: raw values of what the spec holds, and of each modality with a region; or latents.
        regions: solved modality → region that is sampled, as its codec's `mask` takes it; or full stream name → bool
            ``[*shape]``, True where it is sampled.
        num: samples; as many as are given, or one.
        outside: whether what is outside of the regions is sampled, and they are kept (outpainting). A stream that is
            in its region as a whole is sampled in any case.
        resamples: how often each tenth of the path is gone through; 1 is plain replacement.
        kept_at: time below which what is kept is not put back, as a fraction of T; numbers only.
        latents: whether to return latents of all that is solved.
        options: how to sample. `steps` are those of one passage.
        on_step: told of each step, counted over all batches.
        **changes: options by name, in place of those of `options`.

    Returns:
        Solved modality → list of `num` raw samples; with `latents`, full stream name → ``[num, ...]``.

    Raises:
        SpecError: if spec, given and regions do not fit together, or resampling or `kept_at` do not go with the path.
        ValueError: if a region is none of its codec.
    """
    options = SamplingOptions.changed(options or model.sampling, changes, "inpaint()")
    spec = TimestepSpec.parse(spec, model.modalities)
    values, num = values_of(given, num, model.shapes)
    masked = {modality_of(key) for key in regions}
    _check(model, spec, values, masked, resamples, kept_at)
    masks = {
        key: mask.expand(num, *mask.shape[1:]) for key, mask in _masks(model, regions, values, num, outside).items()
    }
    repeated = resampled(spec, options.steps, resamples)
    rows: list[dict[str, Tensor]] = []
    groups = list(_groups(model, masks, num, options.batch_size))
    conditions = conditions_of(options.conditions, model.backbone.conditions, num, model.device)
    for i, part in enumerate(groups):
        known = values.encoded(model, part, options.seed)
        own_masks = {key: mask[part] for key, mask in masks.items()}
        row = _Part(model, repeated[0], known, own_masks, part, options.seed, kept_at)
        own = replace(
            options,
            steps=repeated[1],
            constrain=row.constrain(options),
            conditions={name: value[part] for name, value in conditions.items()},
        )
        told = shifted(on_step, i * own.steps, len(groups) * own.steps)
        rows.append(row.sample(own, told))
    found = {key: torch.cat([row[key] for row in rows]) for key in rows[0] if modality_of(key) in spec.solved}
    return found if latents else model.decode(found, spec.solved)


def resampled(spec: TimestepSpec, steps: int, resamples: int) -> tuple[TimestepSpec, int]:
    """A spec whose solved paths are gone through stretch by stretch, each several times, and its number of steps.

    Raises:
        SpecError: if a solved path is none from one time down to another, or there are fewer steps than stretches.
    """
    if resamples == 1:
        return spec, steps
    if steps < JUMPS:
        raise SpecError(f"resampling goes through {JUMPS} stretches of a step at least, and there are {steps} steps")
    paths = {}
    for name, path in spec.paths.items():
        if name in spec.solved and (len(path.knots) != 2 or path.knots[0][1] < path.knots[1][1]):
            raise SpecError(f"resampling takes paths that go down in one piece, and that of {name!r} in {spec} is none")
        paths[name] = replace(_repeated(path, resamples), renoises=True) if name in spec.solved else path
    return replace(spec, paths=paths), steps * resamples + JUMPS * (resamples - 1)


def _repeated(path: Path, resamples: int) -> Path:
    (_, start), (_, end) = path.knots
    times, places = [start], [0.0]
    for i in range(JUMPS):
        above, below = (start + (end - start) * (i + k) / JUMPS for k in (0, 1))
        for j in range(resamples):
            times += [above] * (j > 0) + [below]
            places += [places[-1] + 0.1] * (j > 0)
            places.append(places[-1] + 1.0)
    return replace(path, knots=tuple((place / places[-1], time) for place, time in zip(places, times, strict=True)))


@dataclass(frozen=True)
class _Part:
    """Some of the samples.

    Attributes:
        known: clean latents of all that is given.
        masks: full stream name → bool ``[b, *shape]``, True where it is free.
        part: which samples.
        kept_at: time below which numbers are not put back.
    """

    model: UniDiffuser
    spec: TimestepSpec
    known: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    part: slice
    seed: int
    kept_at: float
    _calls: Iterator[int] = field(default_factory=itertools.count)

    def process(self, key: str) -> ForwardProcess:
        process: ForwardProcess = self.model.modalities[modality_of(key)].process
        return process

    def sample(self, options: SamplingOptions, on_step: OnStep | None) -> dict[str, Tensor]:
        """Latents of all streams."""
        states, paths = {}, dict(self.spec.paths)
        for key, mask in self.masks.items():
            if (start := self.process(key).start_in_part(self.known[key], mask)) is not None:
                states[key], t = start
                paths[modality_of(key)] = Path("solve", ((0.0, t.max().item() / T), (1.0, 0.0)))
        spec = replace(self.spec, paths=paths)
        held = {key: value for key, value in self.known.items() if key not in states}
        return self.model.sample_latents(
            spec,
            used(spec, held),
            states=states,
            num=self.part.stop - self.part.start,
            first_index=self.part.start,
            options=options,
            on_step=on_step,
        )

    def constrain(self, options: SamplingOptions) -> Any:
        """What is known, put back, before whatever the options ask for."""

        def constrained(latents: dict[str, Tensor], times: dict[str, float]) -> dict[str, Tensor]:
            latents = latents | self._put_back(latents, times, next(self._calls))
            return options.constrain(latents, times) if options.constrain else latents

        return constrained

    def _put_back(self, latents: Mapping[str, Tensor], times: Mapping[str, float], call: int) -> dict[str, Tensor]:
        index = torch.arange(self.part.start, self.part.stop, device=self.model.device)
        moved = {}
        for key, mask in self.masks.items():
            known, t = self.known[key].to(latents[key].dtype), times[modality_of(key)]
            process = self.process(key)
            if t < self.kept_at:
                continue
            if t > 0 and process.start_in_part(known, mask) is None:
                # Fresh noise at each step: with one draw for all of them the samples vary less than they should.
                draws = Draws(self.seed, "sample known", key, call, index)
                known = process.corrupt(known, time_tensor(T * t, len(known), known.device), draws).corrupted
            moved[key] = torch.where(mask, latents[key], known)
        return moved


def _check(
    model: UniDiffuser, spec: TimestepSpec, values: Values, masked: set[str], resamples: int, kept_at: float
) -> None:
    if not masked:
        raise SpecError("no region is given; without one it is sampling")
    if resamples < 1:
        raise SpecError(f"the path is gone through once at least, not {resamples} times")
    if not 0 <= kept_at < 1:
        raise SpecError(f"what is kept is put back down to a time in [0, 1) (0 is clean, 1 is noise), not {kept_at}")
    for name in masked:
        if name not in spec.solved:
            known = ", ".join(spec.solved)
            raise SpecError(f"a region of {name!r} is given, which {spec} does not solve; it does so with {known}")
        if name not in values.names:
            raise SpecError(f"a region of {name!r} is given, and no value of it to keep the rest of; give one")
        path = spec.paths[name]
        if path.knots[0][1] == 0 or path.knots[-1][1] != 0:
            raise SpecError(f"inpainting takes paths from a noisy state to 0, and {name!r} in {spec} has another")
        odd = {
            "path of several knots": len(path.knots) != 2,
            "resampling": resamples > 1,
            "start below 1": path.knots[0][1] < 1,
            "noise of what is kept": kept_at > 0,
        }
        if model.modalities[name].process.is_discrete and any(odd.values()):
            what = next(what for what, is_so in odd.items() if is_so)
            raise SpecError(f"symbols take no {what}: what is free of {name!r} is hidden, and sampled given the rest")
    needed = [name for name, path in spec.paths.items() if path.needs_value]
    for name in values.names - masked:
        if name not in needed:
            raise SpecError(f"a value of {name!r} is given, but {spec} does not use it, and it has no region")
    for name in needed:
        if name not in values.names:
            raise SpecError(f"{spec} holds {name!r}, but no value of it is given; give one")


def _masks(
    model: UniDiffuser, regions: Mapping[str, Any], values: Values, num: int, outside: bool
) -> dict[str, Tensor]:
    """Full stream name → bool ``[num or 1, *shape]``, True where it is free; of all streams of what has a region."""
    masks: dict[str, Tensor] = {}
    for key, region in regions.items():
        if "." in key:
            masks[key] = _checked(key, region, model)[None]
            continue
        codec, raws = model.modalities[key].codec, values.raws.get(key)
        distinct = raws if raws is not None and any(raw is not raws[0] for raw in raws) else (raws or [None])[:1]
        rows = [codec.mask(region, raw) for raw in distinct]
        masks |= {f"{key}.{stream}": torch.stack([row[stream] for row in rows]) for stream in rows[0]}
    for key, shape in model.shapes.items():
        if modality_of(key) in map(modality_of, [*masks]) and key not in masks:
            masks[key] = torch.ones(1, *shape, dtype=torch.bool)
    free = {key: ~mask if outside and not mask.all() else mask for key, mask in masks.items()}
    for name in {modality_of(key) for key in free}:
        if not any(mask.any() for mask in of_modality(free, name).values()):
            raise SpecError(f"nothing of {name!r} is to be sampled")
    return {key: mask.to(model.device) for key, mask in free.items()}


def _checked(key: str, mask: Any, model: UniDiffuser) -> Tensor:
    shape = model.shapes.get(key)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or shape != tuple(mask.shape):
        known = ", ".join(f"{name} {tuple(row)}" for name, row in model.shapes.items())
        found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise SpecError(f"the mask of {key!r} is {found}; it is torch.bool of its stream's shape, of {known}")
    return mask


def _groups(model: UniDiffuser, masks: Mapping[str, Tensor], num: int, batch_size: int) -> Iterator[slice]:
    """Batches, in each of which the same number of symbols is free: they share the time at which so many are hidden."""
    counted = [
        mask.flatten(1).sum(1).tolist()
        for key, mask in masks.items()
        if model.modalities[modality_of(key)].process.is_discrete
    ]
    counts: Sequence[Any] = list(zip(*counted, strict=True)) if counted else [()] * num
    begin = 0
    for i in range(1, num + 1):
        if i == num or counts[i] != counts[begin] or i - begin == batch_size:
            yield slice(begin, i)
            begin = i
