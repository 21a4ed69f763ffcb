"""Sampling: a plain function over any predictor. It owns the grid and every evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidiff_core import randomness
from unidiff_core.guidance import Guidance
from unidiff_core.predictor import Latents, Predictor, modality_of, without
from unidiff_core.process import ForwardProcess, time_tensor
from unidiff_core.schedule import T
from unidiff_core.solver import Past, Solver, find_solver
from unidiff_core.spec import TimestepSpec

Constrain = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
"""(latents, times) → latents, after each step: replaces part of the state. Inpainting lives here."""


@dataclass
class _Sampler:
    """What stays the same during one call."""

    predictor: Predictor
    processes: Mapping[str, ForwardProcess]
    spec: TimestepSpec
    solver: Solver
    supplied: Latents
    draw: Callable[[str, int], dict[str, Tensor]]
    noise: dict[str, Tensor]
    redraws_noise: bool

    def start(self) -> dict[str, Tensor]:
        """The state at progress 0: supplied values noised to where their paths start, noise for the rest."""
        latents = {}
        for key, noise in self.noise.items():
            process = self.processes[modality_of(key)]
            latents[key] = self._noised(key, 0.0) if key in self.supplied else process.start(noise)
        return latents

    def _noised(self, key: str, progress: float) -> Tensor:
        name = modality_of(key)
        value = self.supplied[key]
        t = time_tensor(T * self.spec.paths[name](progress), len(value), value.device)
        return value if not t.any() else self.processes[name].corrupt(value, t, self.noise[key]).corrupted

    def hold(self, latents: dict[str, Tensor], progress: float, step: int) -> dict[str, Tensor]:
        """The state with every held modality at its present time, and ignored ones redrawn if that is asked for."""
        held = {key: self._noised(key, progress) for key in latents if modality_of(key) in self.spec.held}
        if self.redraws_noise:
            fresh = self.draw("ignored", step)
            held |= {key: fresh[key] for key in latents if modality_of(key) in self.spec.ignored}
        return latents | held

    def times(self, latents: Latents, progress: float) -> dict[str, Tensor]:
        """Times ``[b]`` of each modality, in 0..T."""
        some = next(iter(latents.values()))
        return {name: time_tensor(T * t, len(some), some.device) for name, t in self.spec.times(progress).items()}

    def advance(
        self, latents: dict[str, Tensor], ends: tuple[float, float], step: int, past: _History
    ) -> dict[str, Tensor]:
        """Move every solved modality from one progress to the next; the rest is held."""
        now, then = (self.spec.times(progress) for progress in ends)
        clean = self.predictor(latents, self.times(latents, ends[0]))
        moving = [key for key in latents if (name := modality_of(key)) in self.spec.solved and now[name] != then[name]]
        fresh = self.draw("solver", step) if self.solver.is_random else self.noise
        moved = dict(latents)
        for key in moving:
            name = modality_of(key)
            pair = T * now[name], T * then[name]
            moved[key] = self.processes[name].step(
                latents[key], clean[key], *pair, fresh[key], past.get(key, []), self.solver
            )
        moved = self.hold(moved, ends[1], step)
        if self.solver.correct is not None:
            moved |= self._corrected(latents, moved, clean, moving, ends)
        for key in moving:
            past[key] = [*past.get(key, []), Past(T * now[modality_of(key)], clean[key])][
                -max(1, self.solver.history) :
            ]
        return moved

    def _corrected(
        self,
        latents: Latents,
        moved: Latents,
        clean: Latents,
        moving: Sequence[str],
        ends: tuple[float, float],
    ) -> dict[str, Tensor]:
        now, then = (self.spec.times(progress) for progress in ends)
        clean_next = self.predictor(moved, self.times(moved, ends[1]))
        return {
            key: self.processes[name].correct(
                latents[key], moved[key], clean[key], clean_next[key], T * now[name], T * then[name], self.solver
            )
            for key in moving
            if (name := modality_of(key))
        }


_History = dict[str, list[Past]]


def time_grid(spec: TimestepSpec, steps: int) -> list[list[float]]:
    """Progress values of each segment between a spec's knots, `steps` steps in all, shared by length.

    Raises:
        ValueError: if there are fewer steps than segments.
    """
    segments = spec.segments()
    if steps < len(segments):
        raise ValueError(f"{steps} steps are too few for {spec}, whose path has {len(segments)} segments")
    lengths = [end - start for start, end in segments]
    bounds = list(itertools.accumulate((length / sum(lengths) * steps for length in lengths), initial=0.0))
    edges = [round(bound) for bound in bounds]
    counts = [max(1, after - before) for before, after in itertools.pairwise(edges)]
    counts[counts.index(max(counts))] += steps - sum(counts)
    return [_evenly(start, end, count) for (start, end), count in zip(segments, counts, strict=True)]


def _evenly(start: float, end: float, count: int) -> list[float]:
    return [start + (end - start) * i / count for i in range(count)] + [end]


def sample(
    predictor: Predictor,
    spec: TimestepSpec | str | Mapping[str, Any],
    *,
    processes: Mapping[str, ForwardProcess],
    shapes: Mapping[str, tuple[int, ...]],
    num: int,
    supplied: Latents | None = None,
    steps: int = 50,
    solver: str | Solver = "dpmpp_2m",
    guidance: float | Mapping[str, float] | Guidance = 0.0,
    seed: int = 0,
    first_index: int = 0,
    redraws_noise: bool = False,
    drop_ignored: bool = False,
    constrain: Constrain | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Sample latents by a timestep spec.

    Args:
        predictor: (latents, times) → clean estimates.
        spec: what to solve, hold and ignore; text, mapping or parsed.
        processes: modality → forward process.
        shapes: full stream name → shape of one sample.
        num: samples b.
        supplied: clean latents ``[b, ...]`` of what the spec holds, or starts below pure noise.
        steps: solver steps over the whole path. Heun makes two evaluations a step, the others one.
        solver: name or `Solver`.
        guidance: a scale s (0 is off), a scale per held modality, or a `Guidance`.
        seed: sample i is a function of (seed, first_index + i) alone.
        first_index: index of the first sample, when a large run is drawn in batches.
        redraws_noise: whether ignored modalities get fresh noise at each step, as the released code does, instead of
            one fixed draw.
        drop_ignored: whether ignored modalities, and those that guidance silences, are left out of the network's input
            in place of being noise at T. Cheaper; the same only for a network that was trained so (`UniDiffuser`).
        constrain: replaces part of the state after each step.
        dtype: of the state.
        device: of the state.
        on_step: called with (steps done, steps in all).

    Returns:
        Latents of all streams at the end of the path. A modality that is held at 0 comes back bit for bit.

    Raises:
        SpecError: if the spec is wrong, or lacks a supplied value, or is given one it does not use.
    """
    spec = TimestepSpec.parse(spec, processes)
    supplied = {key: value.to(device, dtype) for key, value in (supplied or {}).items()}
    spec.check_supplied({modality_of(key) for key in supplied})
    index = torch.arange(first_index, first_index + num, device=device)

    def draw(purpose: str, step: int) -> dict[str, Tensor]:
        return {
            key: randomness.normal(seed, f"sample {purpose}", key, step, index, shape).to(dtype)
            for key, shape in shapes.items()
        }

    noise = draw("noise", 0)
    guidance = guidance if isinstance(guidance, Guidance) else Guidance.of(spec, guidance)
    if drop_ignored:
        predictor = without(predictor, spec.ignored)
    guided = guidance.wrap(predictor, None if drop_ignored else noise)
    sampler = _Sampler(guided, processes, spec, find_solver(solver), supplied, draw, noise, redraws_noise)
    with torch.no_grad():  # not inference_mode: a predictor may take gradients of its own
        return _run(sampler, steps, constrain, on_step)


def _run(
    sampler: _Sampler, steps: int, constrain: Constrain | None, on_step: Callable[[int, int], None] | None
) -> dict[str, Tensor]:
    latents = sampler.start()
    for step, ends, past in _steps(time_grid(sampler.spec, steps)):
        if not past:  # a segment begins, perhaps after a stretch in which nothing was solved
            latents = sampler.hold(latents, ends[0], step)
        latents = sampler.advance(latents, ends, step, past)
        if constrain is not None:
            latents = constrain(latents, sampler.times(latents, ends[1]))
        if on_step is not None:
            on_step(step + 1, steps)
    return sampler.hold(latents, 1.0, steps)


def _steps(segments: Sequence[Sequence[float]]) -> Iterator[tuple[int, tuple[float, float], _History]]:
    """Number, progress before and after, and the multistep history, which restarts at each knot."""
    step = itertools.count()
    for segment in segments:
        past: _History = {}
        for ends in itertools.pairwise(segment):
            yield next(step), ends, past
