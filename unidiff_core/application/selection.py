"""Selection: the best of several samples, by a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from unidiff_core.codec.codec import Raw
from unidiff_core.sampling.call import values_of
from unidiff_core.sampling.given import Given
from unidiff_core.sampling.loop import OnStep
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import SpecError, TimestepSpec
from unidiff_core.system import UniDiffuser

Score = Callable[[Mapping[str, Sequence[Raw]], Mapping[str, Sequence[Raw]]], Sequence[float]]
"""(solved modality → raw samples, given modality → raw samples) → a number for each, the larger the better."""


def best_of(
    model: UniDiffuser,
    spec: TimestepSpec | str | Mapping[str, Any],
    given: Given | None = None,
    num: int | None = None,
    *,
    n: int,
    score: Score,
    options: SamplingOptions | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> dict[str, list[Raw]]:
    """The best of `n` samples for each of `num`. Candidate j of sample i is number i·n + j of the seed.

    Args:
        model: to sample from.
        spec: as in `UniDiffuser.sample`.
        given: modality → one raw sample or `num`.
        num: samples that are returned.
        n: candidates for each.
        score: of all candidates at once: a judge's agreement with what is given, CLIP's.
        options: how to sample.
        on_step: told of each step.
        **changes: options by name, in place of those of `options`.

    Returns:
        Solved modality → list of `num` raw samples.

    Raises:
        SpecError: if spec and given do not fit together, what is given is latents, `n` is below 1, or the score is not
            a number for each candidate.
    """
    if n < 1:
        raise SpecError(f"the best of {n} samples is none; n is 1 at least")
    values, num = values_of(given or {}, num, model.shapes)
    if values.latents:
        raise SpecError("best_of takes raw values, which the score is told of")
    repeated = {name: [raw for raw in raws for _ in range(n)] for name, raws in values.raws.items()}
    options = SamplingOptions.changed(options or model.sampling, changes, "best_of()")
    drawn = model.sample(spec, repeated, num * n, options=options, on_step=on_step)
    scores = torch.as_tensor(score(drawn, repeated), dtype=torch.float64)
    if scores.shape != (num * n,) or scores.isnan().any():
        raise SpecError(f"the score gives {tuple(scores.shape)} for {num * n} candidates; it is a number for each")
    best = [i * n + j for i, j in enumerate(scores.view(num, n).argmax(1).tolist())]
    return {name: [raws[i] for i in best] for name, raws in drawn.items()}
