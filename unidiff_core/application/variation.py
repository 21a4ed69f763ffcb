"""Variation: a sample is turned into another modality and back, so that what both tell of it stays."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from unidiff_core.application.chain import chain
from unidiff_core.application.moment import Moment
from unidiff_core.sampling.given import Given
from unidiff_core.sampling.loop import OnStep
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import SpecError
from unidiff_core.system import UniDiffuser

ARROW = re.compile(r"\s*(?:->|→|>)\s*")


def stations_of(cycle: str | Sequence[str]) -> list[str]:
    """``"image > text > image"`` → its stations; several modalities at once have commas between.

    Raises:
        SpecError: if there are fewer than two, or one is empty.
    """
    stations = ARROW.split(cycle.strip()) if isinstance(cycle, str) else list(cycle)
    if len(stations) < 2 or not all(row.strip() for row in stations):
        raise SpecError(f"a variation goes through two stations at least, 'image > text > image' say, not {cycle!r}")
    return stations


def specs_of(cycle: str | Sequence[str]) -> list[str]:
    """The timestep spec of each way from one station to the next.

    Raises:
        SpecError: see `stations_of`.
    """
    stations = stations_of(cycle)
    return [f"{there} | {here}" for here, there in itertools.pairwise(stations)]


def vary(
    model: UniDiffuser,
    cycle: str | Sequence[str],
    given: Given,
    num: int | None = None,
    *,
    options: SamplingOptions | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> Moment:
    """Take samples through other modalities and back: the paper's variation, over any cycle.

    ``vary(model, "image > text > image", {"image": x}, num=8)``. A station may be of several modalities, ``"image >
    text, audio > image"``, and need not close. Latents are passed from one to the next, and nothing is decoded.
    Source: UniDiffuser (arXiv 2303.06555), section 5 and its released code.

    Args:
        model: to sample from.
        cycle: stations with an arrow between, or a list of them.
        given: of the first station: modality → one raw sample or `num`; or full stream name → latents.
        num: variations; as many as are given, or one.
        options: how to sample on each way.
        on_step: told of each step, counted over all ways.
        **changes: options by name, in place of those of `options`.

    Returns:
        The last station, `Moment.decode` of which gives raw samples; its latents also hold the others.

    Raises:
        SpecError: if cycle and given do not fit together.
    """
    options = SamplingOptions.changed(options or model.sampling, changes, "vary()")
    *_, last = chain(model, specs_of(cycle), given, num, options=options, on_step=on_step)
    return last
