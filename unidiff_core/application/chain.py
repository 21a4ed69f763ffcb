"""Chains: one spec after the other, each on what those before have left; blocked Gibbs sampling, in any order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from unidiff_core.application.moment import Moment
from unidiff_core.foundation.latents import modality_of
from unidiff_core.foundation.randomness import key_of
from unidiff_core.sampling.call import latents_of, values_of
from unidiff_core.sampling.given import Given, shifted
from unidiff_core.sampling.loop import OnStep
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import SpecError, TimestepSpec
from unidiff_core.system import UniDiffuser


def chain(
    model: UniDiffuser,
    specs: Sequence[str | Mapping[str, Any] | TimestepSpec],
    given: Given | None = None,
    num: int | None = None,
    *,
    rounds: int = 1,
    options: SamplingOptions | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> Iterator[Moment]:
    """Sample by specs in turn; each replaces what it solves, and the next is given that.

    ``chain(model, ["text | image", "image | text"], {"image": x}, rounds=10)`` is blocked Gibbs sampling: its pairs
    come to be of the joint distribution, as far as the two conditionals agree on one. Latents are passed on as they
    are, and nothing is decoded. Link k has a seed of its own, of the seed and k; the first has the seed itself.

    Args:
        model: to sample from.
        specs: any alternation, over any modalities.
        given: of what the first specs hold: modality → one raw sample or `num`; or full stream name → latents.
        num: samples, which are chains of their own; as many as are given, or one.
        rounds: how often the specs are gone through.
        options: how to sample, in each link. Guidance and solvers by name are for the links that have the name.
        on_step: told of each step, counted over all links.
        **changes: options by name, in place of those of `options`.

    Returns:
        The links, each made when it is asked for.

    Raises:
        SpecError: if a spec holds what is neither given nor solved before, a value is given that none uses, or there
            is nothing to do.
    """
    options = SamplingOptions.changed(options or model.sampling, changes, "chain()")
    parsed = [TimestepSpec.parse(spec, model.modalities) for spec in specs] * rounds
    if not parsed:
        raise SpecError("a chain is of one spec and one round at least")
    values, num = values_of(given or {}, num, model.shapes)
    check_links(parsed, values.names)
    latents = values.encoded(model, slice(0, num), options.seed)
    return _links(model, parsed, latents, num, options, on_step)


def check_links(specs: Sequence[TimestepSpec], given: set[str]) -> None:
    """Check that each spec finds what it holds, and each given value a spec that uses it before it is replaced.

    Raises:
        SpecError: names the spec and the modality.
    """
    known, unused = set(given), set(given)
    for i, spec in enumerate(specs):
        needed = {name for name, path in spec.paths.items() if path.needs_value}
        if absent := sorted(needed - known):
            raise SpecError(
                f"link {i + 1}, {spec}, needs {absent[0]!r}, which is neither given nor solved before; give it, or "
                "begin with a spec that solves it"
            )
        unused -= needed
        known |= {*spec.solved}
    if unused:
        raise SpecError(f"a value of {min(unused)!r} is given, but no link of {', '.join(map(str, specs[:4]))} uses it")


def options_of(link: int, spec: TimestepSpec, options: SamplingOptions) -> SamplingOptions:
    """The options of one link: its own seed, and what is said by name as far as it has the names."""
    seed = options.seed if link == 0 else key_of(options.seed, f"link {link}")[0]
    guidance, solver = options.guidance, options.solver
    if isinstance(guidance, Mapping):
        held = {name: scale for name, scale in guidance.items() if name in spec.held}
        guidance = held or {name: scale for name, scale in guidance.items() if name in spec.solved} or 0.0
    if isinstance(solver, Mapping):
        solver = {name: row for name, row in solver.items() if name in spec.solved} or None
    return replace(options, seed=seed, guidance=guidance, solver=solver)


def used(spec: TimestepSpec, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The latents that a spec needs values of."""
    return {key: value for key, value in latents.items() if spec.paths[modality_of(key)].needs_value}


def _links(
    model: UniDiffuser,
    specs: Sequence[TimestepSpec],
    latents: dict[str, Tensor],
    num: int,
    options: SamplingOptions,
    on_step: OnStep | None,
) -> Iterator[Moment]:
    steps = options.steps * -(-num // options.batch_size)
    for i, spec in enumerate(specs):
        told = shifted(on_step, i * steps, len(specs) * steps)
        own = options_of(i, spec, options)
        latents = latents | latents_of(model, spec, used(spec, latents), num, options=own, on_step=told)
        yield Moment(str(spec), latents, spec.solved)
