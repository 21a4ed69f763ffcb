"""The sampling loop: a plain function over any predictor. It owns the grid and every evaluation."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unidiff_core.foundation.argument import check_whole
from unidiff_core.foundation.latents import Latents, Times, cast, check_finite_latents, dropped, modality_of
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.process.process import ForwardProcess, History, Past, Solver, Step
from unidiff_core.sampling.guidance import silence
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.predictor import Predictor, without
from unidiff_core.sampling.spacing import spaced
from unidiff_core.sampling.spec import SpecError, TimestepSpec

ROUNDED = 9
"""Decimal places to which shares of steps are compared, so that what is equal but for rounding is."""


@dataclass(frozen=True)
class StepReport:
    """What has just happened: for previews, films, and stopping early.

    Attributes:
        step: steps done.
        steps: steps in all.
        times: modality → time now, as a fraction of T.
        clean: clean estimates ``"<modality>.<stream>" -> [b, ...]`` that the step was made with, of all streams; the
            last ones, if it needed none, as it moves nothing, adds fresh noise, or begins clean.
        latents: the state now.
    """

    step: int
    steps: int
    times: Mapping[str, float]
    clean: Latents
    latents: Latents


OnStep = Callable[[StepReport], bool | None]
"""Called after each step; True ends the sampling there, with the state as it is."""


@dataclass
class _Sampler:
    """What stays the same during one call."""

    predictor: Predictor
    processes: Mapping[str, ForwardProcess]
    shapes: Mapping[str, tuple[int, ...]]
    spec: TimestepSpec
    solvers: Mapping[str, Solver | None]
    supplied: Latents
    states: Latents
    against: Latents
    draws: Callable[[str, str, int], Draws]
    """(purpose, full stream name, step) → randomness."""
    redraws_noise: bool
    drops: bool
    jumps_first: bool
    dtype: torch.dtype
    _starts: dict[str, Tensor] = field(default_factory=dict)
    _clean: dict[str, Tensor] = field(default_factory=dict)
    _evaluations: int = 0

    def process(self, key: str) -> ForwardProcess:
        """Of a stream, by its full name."""
        return self.processes[modality_of(key)]

    def noise(self, key: str) -> Draws:
        """The one draw that a start and a held value keep."""
        return self.draws("noise", key, 0)

    def start_of(self, key: str) -> Tensor:
        """The state of a stream at T; always the same one."""
        if key not in self._starts:
            self._starts[key] = cast(self.process(key).start(self.shapes[key], self.noise(key)), self.dtype)
        return self._starts[key]

    def start(self) -> dict[str, Tensor]:
        """The state at progress 0: given states as they are, supplied values noised to where their paths start, the
        state at T for the rest.
        """
        begun = {key: self._noised(key, 0.0) if key in self.supplied else self.start_of(key) for key in self.shapes}
        return begun | dict(self.states)

    def _noised(self, key: str, progress: float) -> Tensor:
        value = self.supplied[key]
        t = time_tensor(T * self.spec.paths[modality_of(key)](progress), len(value), value.device)
        return self._at(key, value, t)

    def _at(self, key: str, value: Tensor, t: Tensor) -> Tensor:
        return value if not t.any() else self.process(key).corrupt(value, t, self.noise(key)).corrupted

    def silenced(self, latents: Latents, times: Times, names: frozenset[str]) -> tuple[Latents, Times]:
        """Latents and times without a condition: it is dropped, replaced by what guidance leads away from, or at T."""
        replaced = {key: self._at(key, value, times[modality_of(key)]) for key, value in self.against.items()}
        absent = names - {modality_of(key) for key in replaced}
        changed = {
            key: replaced[key] if key in replaced and modality_of(key) in names else latents[key] for key in latents
        }
        if self.drops:
            return dropped(changed, times, absent)
        return silence(changed, times, absent, self._silent)

    def _silent(self, key: str) -> Tensor:
        """A silenced stream's state at T: the one draw, or one of this evaluation alone."""
        if not self.redraws_noise:
            return self.start_of(key)
        draws = self.draws("silenced", key, self._evaluations)
        return cast(self.process(key).start(self.shapes[key], draws), self.dtype)

    def evaluate(self, latents: Latents, times: Mapping[str, float]) -> dict[str, Tensor]:
        """Clean estimates of a state, guided; times are fractions of T."""
        self._evaluations += 1
        some = next(iter(latents.values()))
        in_steps = {name: time_tensor(T * t, len(some), some.device) for name, t in times.items()}
        return self.predictor(latents, in_steps)

    def hold(self, latents: dict[str, Tensor], progress: float, step: int) -> dict[str, Tensor]:
        """The state with every held modality at its present time, and ignored ones redrawn if that is asked for."""
        held = {key: self._noised(key, progress) for key in latents if modality_of(key) in self.spec.held}
        if self.redraws_noise:
            held |= {
                key: cast(self.process(key).start(self.shapes[key], self.draws("ignored", key, step)), self.dtype)
                for key in latents
                if modality_of(key) in self.spec.ignored
            }
        return latents | held

    def histories(self, segment: Sequence[float]) -> dict[str, History]:
        """A fresh history for each solved stream, over a stretch between knots."""
        solved = [key for key in self.shapes if modality_of(key) in self.spec.solved]
        return {key: History([T * self.spec.paths[modality_of(key)](p) for p in segment]) for key in solved}

    def advance(
        self, latents: dict[str, Tensor], ends: tuple[float, float], step: int, histories: Mapping[str, History]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Move every solved modality from one progress to the next, and hold the rest: the state, clean estimates.

        Symbols jump, numbers flow; a correction compares two estimates by the same symbols. ``together``: numbers by
        one evaluation, symbols by the last one there is, which for a solver that corrects is at the numbers' next
        state. ``discrete_first``: symbols by one evaluation, numbers by another that sees where they went.
        """
        moves = self._moves(latents, ends, step, histories)
        if not moves:  # symbols that stay as they are
            return self.hold(latents, ends[1], step + 1), self._clean
        jumps = {key: move for key, move in moves.items() if self.process(key).is_discrete}
        flows = {key: move for key, move in moves.items() if key not in jumps}
        now, then = (self.spec.times(progress) for progress in ends)
        moved = self.hold(dict(latents), ends[1], step + 1)
        clean = self._asked(latents, now, jumps if self.jumps_first else moves)
        if self.jumps_first:
            moved |= self._stepped(latents, clean, jumps, step)
            latents, now = self._between((moved, then), (latents, now))
            clean |= {key: row for key, row in self._asked(latents, now, flows).items() if key not in jumps}
        moved |= self._stepped(latents, clean, flows, step)
        corrected = [key for key, move in flows.items() if self._corrects(key, move)]
        if corrected:
            clean_next = self.evaluate(*self._between((latents, now), (moved, then)))
            moved |= {key: self._corrected(key, latents, moved, clean, clean_next, flows[key]) for key in corrected}
            clean |= {key: clean_next[key] for key in jumps if not self.jumps_first}
        if not self.jumps_first:
            moved |= self._stepped(latents, clean, jumps, step)
        for key, move in moves.items():
            if not self._renoises(key, move):
                self._remember(move, clean[key], self.solvers[modality_of(key)])
        self._clean = {**self._clean, **clean}
        return moved, self._clean

    def _corrects(self, key: str, move: Step) -> bool:
        return not self._renoises(key, move) and self.process(key).corrects(move, self.solvers[modality_of(key)])

    def _corrected(
        self, key: str, latents: Latents, moved: Latents, clean: Latents, clean_next: Latents, move: Step
    ) -> Tensor:
        solver = self.solvers[modality_of(key)]
        return self.process(key).correct(latents[key], moved[key], clean[key], clean_next[key], move, solver)

    def _asked(self, latents: Latents, times: Mapping[str, float], moves: Mapping[str, Step]) -> dict[str, Tensor]:
        """Clean estimates, if one of these moves asks for any: fresh noise does not, and what is clean is known."""
        asking = {key: move for key, move in moves.items() if not self._renoises(key, move)}
        if all(self.process(key).knows(move.t) for key, move in asking.items()):
            return {key: latents[key] for key in asking}
        return dict(self.evaluate(latents, times))

    def _stepped(self, latents: Latents, clean: Latents, moves: Mapping[str, Step], step: int) -> dict[str, Tensor]:
        """The streams of these moves, moved."""
        moved = {}
        for key, move in moves.items():
            process = self.process(key)
            if self._renoises(key, move):
                moved[key] = process.renoise(latents[key], move.t, move.t_next, self.draws("renoise", key, step))
            else:
                moved[key] = process.step(latents[key], clean[key], move, self.solvers[modality_of(key)])
        return moved

    def _between(
        self, symbols: tuple[Latents, Mapping[str, float]], numbers: tuple[Latents, Mapping[str, float]]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The state and times of all modalities of symbols, and those of all others."""
        pick = {name: symbols if process.is_discrete else numbers for name, process in self.processes.items()}
        latents = {key: pick[modality_of(key)][0][key] for key in numbers[0]}
        return latents, {name: times[name] for name, (_, times) in pick.items()}

    def _moves(
        self, latents: Latents, ends: tuple[float, float], step: int, histories: Mapping[str, History]
    ) -> dict[str, Step]:
        """The streams that this step changes, and from when to when."""
        now, then = (self.spec.times(progress) for progress in ends)
        moves = {
            key: Step(
                T * now[name],
                T * then[name],
                self.draws("solver", key, step),
                histories[key],
                self.process(key).clean_std[key](T * now[name]) if key in self.process(key).clean_std else None,
                self.noise(key),
            )
            for key in latents
            if (name := modality_of(key)) in self.spec.solved and now[name] != then[name]
        }
        return {
            key: move
            for key, move in moves.items()
            if not self.process(key).is_identity(move, latents[key].shape[1:], self.solvers[modality_of(key)])
        }

    def _renoises(self, key: str, move: Step) -> bool:
        return move.t_next > move.t and self.spec.paths[modality_of(key)].renoises

    @staticmethod
    def _remember(move: Step, clean: Tensor, solver: Solver | None) -> None:
        num_past = solver.num_past if solver else 0
        past = [*move.history.past, Past(move.t, clean)]
        move.history.past = past[len(past) - num_past :]


def check_inversions(spec: TimestepSpec, processes: Mapping[str, ForwardProcess]) -> None:
    """Check that a path which ends noisier than it starts is of a process that can come back.

    Raises:
        SpecError: if it is not; says what to do.
    """
    for name in spec.solved:
        (_, start), *_, (_, end) = spec.paths[name].knots
        process = type(processes[name]).__name__
        if end > start and not processes[name].inverts and not spec.paths[name].renoises:
            raise SpecError(
                f"the path of {name!r} goes up from {start:g} to {end:g}, which inverts, and {process} cannot be "
                f"inverted: what it takes away is gone. To corrupt a value hold it, {{{name}: {{hold: [{start:g}, "
                f"{end:g}]}}}}; to vary it solve it from below T, {name}@0.6"
            )


def warn_of_leaks(spec: TimestepSpec, processes: Mapping[str, ForwardProcess]) -> None:
    """Warn of ignored modalities whose processes leave something of the data at T; Python shows each warning once."""
    for name in spec.ignored:
        if not processes[name].forgets:
            warnings.warn(
                f"ignoring {name!r} is no exact marginal: {type(processes[name]).__name__} leaves "
                f"{processes[name].leak:.2g} bits of each element at T; take a process that leaves none, or drop it "
                "with drop_ignored",
                stacklevel=1,
            )


def time_grid(spec: TimestepSpec, steps: int) -> list[list[float]]:
    """Progress values of each segment between a spec's knots, `steps` steps in all.

    Each segment has one step; the others are shared by length, and what does not divide goes by largest remainder. A
    segment that goes up by fresh noise and by nothing else is exact in one step, and has no more.

    Raises:
        ValueError: if there are fewer steps than segments.
    """
    segments = spec.segments()
    if steps < len(segments):
        raise ValueError(f"{steps} steps are too few for {spec}, whose path has {len(segments)} segments")
    solved = [not spec.is_renoised(*ends) for ends in segments]
    weights = [end - start if of or not any(solved) else 0.0 for (start, end), of in zip(segments, solved, strict=True)]
    counts = _shared(steps - len(segments), weights)
    return [_evenly(start, end, count) for (start, end), count in zip(segments, counts, strict=True)]


def _shared(rest: int, lengths: Sequence[float]) -> list[int]:
    """One for each length, and `rest` more by largest remainder; of equal remainders the first."""
    quotas = [round(length / sum(lengths) * rest, ROUNDED) for length in lengths]
    counts = [1 + math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(lengths)), key=lambda i: math.floor(quotas[i]) - quotas[i])
    for i in by_remainder[: rest + len(lengths) - sum(counts)]:
        counts[i] += 1
    return counts


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
    states: Latents | None = None,
    against: Latents | None = None,
    options: SamplingOptions | None = None,
    first_index: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    **changes: Any,
) -> dict[str, Tensor]:
    """Sample latents by a timestep spec, all `num` of them at once.

    Args:
        predictor: (latents, times) → clean estimates.
        spec: what to solve, hold and ignore; text, mapping or parsed.
        processes: modality → forward process.
        shapes: full stream name → shape of one sample.
        num: samples b.
        supplied: clean latents ``[b, ...]`` of what the spec holds, or starts below pure noise.
        states: states ``[b, ...]`` at the start of their paths of solved modalities, taken as they are: what an
            inversion gave, say. They need no supplied value.
        against: clean latents ``[b, ...]`` of held modalities that guidance leads away from, in place of T.
        options: how to sample. Its batch size and conditions are the caller's business, and what is `empty` is
            given as `against`.
        first_index: index of the first sample, when a large run is drawn in batches.
        dtype: of the state, where it is of numbers.
        device: of the state.
        on_step: told of each step.
        **changes: options by name, in place of those of `options`: ``steps=20, guidance=2.0``.

    Returns:
        Latents of all streams at the end of the path. A modality that is held at 0 comes back bit for bit.

    Raises:
        SpecError: if the spec is wrong, or lacks a supplied value, or is given one it does not use, or inverts what
            cannot be inverted.
        UnknownNameError: if a solver is not known.
    """
    options = SamplingOptions.changed(options, changes, "sample()")
    spec = TimestepSpec.parse(spec, processes)
    check_whole("num", num, at_least=1)
    if options.empty:
        raise SpecError("what is empty is a codec's, and there is none here: give its latents as `against`")
    supplied, states, against = (
        {key: cast(value, dtype).to(device) for key, value in (row or {}).items()}
        for row in (supplied, states, against)
    )
    spec.check_supplied(_names(supplied), _names(states), _names(against))
    begins = {name: path(0.0) for name, path in spec.paths.items()}
    check_states(
        states,
        {
            key: processes[modality_of(key)].state_shape(shape) if begins[modality_of(key)] else shape
            for key, shape in shapes.items()
        },
        num,
    )
    check_states(supplied, shapes, num, "value")
    check_states(against, shapes, num, "value to lead away from")
    for row in (supplied, against):
        check_values(row, dict.fromkeys(begins, 0.0), processes)
    check_values(states, begins, processes)
    check_inversions(spec, processes)
    spec = spaced(spec, options.spacing, processes)
    if not options.drop_ignored:
        warn_of_leaks(spec, processes)
    index = torch.arange(first_index, first_index + num, device=device)
    drawn: dict[str, Draws] = {}

    def draws(purpose: str, key: str, step: int) -> Draws:
        if purpose != "noise":
            return Draws(options.seed, f"sample {purpose}", key, step, index)
        return drawn.setdefault(key, Draws(options.seed, "sample noise", key, step, index))  # kept: asked for again

    sampler = _Sampler(
        predictor=without(predictor, spec.ignored) if options.drop_ignored else predictor,
        processes=processes,
        shapes=shapes,
        spec=spec,
        solvers=options.solvers_for(spec, processes),
        supplied=supplied,
        states=states,
        against=against,
        draws=draws,
        redraws_noise=options.redraws_noise,
        drops=options.drop_ignored,
        jumps_first=options.interleave == "discrete_first",
        dtype=dtype,
    )
    sampler.predictor = options.wrapped(sampler.predictor, spec, processes, sampler.silenced)
    with torch.no_grad():  # not inference_mode: a predictor may take gradients of its own
        return _run(sampler, options, on_step)


def _names(latents: Latents) -> set[str]:
    return {modality_of(key) for key in latents}


def check_states(states: Latents, shapes: Mapping[str, tuple[int, ...]], num: int, what: str = "state") -> None:
    """Check that states, or other latents, are whole: every stream of a modality, of its shape.

    Raises:
        SpecError: names the stream.
    """
    for name in _names(states):
        for key, shape in shapes.items():
            if modality_of(key) == name and (key not in states or states[key].shape != (num, *shape)):
                found = tuple(states[key].shape) if key in states else "nothing"
                raise SpecError(f"the {what} of {key!r} is {(num, *shape)} for {num} samples, and {found} is given")


def check_values(latents: Latents, times: Mapping[str, float], processes: Mapping[str, ForwardProcess]) -> None:
    """Check that latents and states are what their processes are over.

    Args:
        latents: by full stream name.
        times: modality → as a fraction of T.
        processes: of all modalities.

    Raises:
        SpecError: names the stream.
    """
    for key, value in latents.items():
        try:
            check_finite_latents(key, value)
            processes[modality_of(key)].check_state(value, T * times[modality_of(key)])
        except ValueError as error:
            raise SpecError(f"what is given of {key!r} cannot be used: {error}") from error


def _run(sampler: _Sampler, options: SamplingOptions, on_step: OnStep | None) -> dict[str, Tensor]:
    latents = sampler.start()
    for step, ends, histories, begins in _steps(sampler, time_grid(sampler.spec, options.steps)):
        if begins:  # a segment, perhaps after a stretch in which nothing was solved
            latents = sampler.hold(latents, ends[0], step)
        latents, clean = sampler.advance(latents, ends, step, histories)
        times = sampler.spec.times(ends[1])
        if options.constrain is not None:
            latents = options.constrain(latents, times)
        if on_step is not None and on_step(StepReport(step + 1, options.steps, times, clean, latents)):
            return latents
    return sampler.hold(latents, 1.0, options.steps)


def _steps(
    sampler: _Sampler, segments: Sequence[Sequence[float]]
) -> Iterator[tuple[int, tuple[float, float], dict[str, History], bool]]:
    """Number, progress before and after, the histories, which restart at each knot, and whether they just did."""
    step = itertools.count()
    for segment in segments:
        histories = sampler.histories(segment)
        for i, ends in enumerate(itertools.pairwise(segment)):
            yield next(step), ends, histories, i == 0
