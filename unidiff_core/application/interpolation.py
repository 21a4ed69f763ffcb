"""Interpolation between samples, as the paper describes it: along a sphere from one's noise to the other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unidiff_core.application.moment import Moment
from unidiff_core.foundation.latents import modality_of
from unidiff_core.sampling.call import latents_of, values_of
from unidiff_core.sampling.given import Given, shifted
from unidiff_core.sampling.loop import OnStep
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import SpecError
from unidiff_core.system import UniDiffuser

PARALLEL = 1e-4
"""Angle, in radians, below which the sphere is flat."""


def slerp(a: Float[Tensor, "b *shape"], b: Float[Tensor, "b *shape"], share: float) -> Float[Tensor, "b *shape"]:
    """Spherical interpolation of each sample: `a` at 0, `b` at 1; a straight line where the two are parallel."""
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    norms = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    angle = ((flat_a * flat_b).sum(1) / norms.clamp(min=1e-30)).clamp(-1, 1).acos()[:, None]
    bent = angle.clamp(min=PARALLEL)
    first, second = ((1 - share) * bent).sin() / bent.sin(), (share * bent).sin() / bent.sin()
    # Opposite ones have no one way between them; like parallel ones they go straight.
    is_flat = (angle < PARALLEL) | (angle > torch.pi - PARALLEL)
    first, second = torch.where(is_flat, 1 - share, first), torch.where(is_flat, share, second)
    return (first * flat_a + second * flat_b).reshape(a.shape).to(a.dtype)


def interpolate(
    model: UniDiffuser,
    name: str,
    ends: tuple[Given, Given],
    *,
    through: Sequence[str] = (),
    frames: int = 7,
    options: SamplingOptions | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> list[Moment]:
    """What lies between two samples of a modality.

    1. What it is given `through`, text say, is sampled for both ends from the same noise, unless it is given with them.
    2. The solver runs backwards, from each end to its noise, under that condition.
    3. Conditions and noises are interpolated along a sphere.
    4. The solver runs forwards from each. The first and last frame are the ends as they come back.

    Everything is deterministic but the noise of step 1, so take a deterministic solver (``dpmpp_2m``, ``heun``,
    ``ddim``). Guidance, if it is on, is on in both directions.
    Source: UniDiffuser (arXiv 2303.06555), appendix on interpolation; never released.

    Args:
        model: to sample from.
        name: of the modality.
        ends: two givens: modality → raw samples, or full stream name → latents, of one number of pairs.
        through: modalities that tell what the samples are of; none for an interpolation of noises alone.
        frames: places on the way, the ends among them.
        options: how to sample, in each direction.
        on_step: told of each step, counted over all runs.
        **changes: options by name, in place of those of `options`.

    Returns:
        A moment for each frame, of as many samples as there are pairs.

    Raises:
        SpecError: if an end lacks the modality or has what is not asked for, a process cannot be inverted, or has
            symbols, between which there is nothing.
    """
    options = SamplingOptions.changed(options or model.sampling, changes, "interpolate()")
    _check(model, name, ends, through, frames)
    groups = [values_of(end, None, model.shapes) for end in ends]
    if (num := groups[0][1]) != groups[1][1]:
        raise SpecError(f"one end has {num} samples, and the other {groups[1][1]}; an interpolation is between pairs")
    asked = [row for row in through if row not in groups[0][0].names]
    steps = options.steps * -(-num // options.batch_size)
    runs = 2 * (bool(asked) + 1) + frames
    done = iter(range(runs))

    def run(spec: Mapping[str, Any], latents: Mapping[str, Tensor], **more: Any) -> dict[str, Tensor]:
        told = shifted(on_step, next(done) * steps, runs * steps)
        return latents_of(model, spec, latents, num, options=options, on_step=told, **more)

    both = [values.encoded(model, slice(0, num), options.seed) for values, _ in groups]
    if asked:
        spec = {modality_of(key): 0 for key in both[0]} | {key: [1, 0] for key in asked}
        both = [row | run(spec, row) for row in both]
    told = dict.fromkeys(through, 0)
    noises = [run({name: [0, 1], **told}, row) for row in both]
    contexts = [{key: value for key, value in row.items() if modality_of(key) in through} for row in both]
    moments = []
    for i in range(frames):
        share = i / (frames - 1)
        states = {key: slerp(noises[0][key], noises[1][key], share) for key in noises[0]}
        given = {key: slerp(contexts[0][key], contexts[1][key], share) for key in contexts[0]}
        found = run({name: [1, 0], **told}, given, states=states)
        moments.append(Moment(f"{share:.2f}", given | found, (name, *through)))
    return moments


def _check(model: UniDiffuser, name: str, ends: tuple[Given, Given], through: Sequence[str], frames: int) -> None:
    if frames < 2:
        raise SpecError(f"an interpolation has two frames at least, its ends, not {frames}")
    for row in (name, *through):
        if row not in model.modalities:
            raise SpecError(f"unknown modality {row!r}; known: {', '.join(model.modalities)}")
        process = model.modalities[row].process
        if process.is_discrete:
            raise SpecError(
                f"{row!r} is of symbols ({type(process).__name__}), between which there is nothing; interpolate what "
                "is of numbers"
            )
    if name in through:
        raise SpecError(f"{name!r} is interpolated, and cannot be what it is given through too")
    first, second = ({key.partition(".")[0] for key in end} for end in ends)
    if first != second or not {name} <= first <= {name, *through}:
        raise SpecError(
            f"the ends are given as {', '.join(sorted(first)) or 'nothing'} and as "
            f"{', '.join(sorted(second)) or 'nothing'}; both are of {name!r}, and of what they go through "
            f"({', '.join(through) or 'nothing'}) if that is given"
        )
