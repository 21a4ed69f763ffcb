"""The loop's edges: clean states, and noise that is drawn anew."""

from __future__ import annotations

import warnings

import pytest
import torch

from unidiff_core.process.cold.process import Cold
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import Flow, ScaledLinear
from unidiff_core.sampling.loop import sample

SHAPES = {"a.v": (3,), "b.v": (2,)}


def run(predictor, spec, prediction="clean", **options):
    processes = {name: Gaussian(ScaledLinear(), prediction) for name in "ab"}
    return sample(predictor(processes), spec, processes=processes, shapes=SHAPES, num=4, **options)


def wrong(processes):
    """A network of clean estimates that says 7 of everything, as a real one is wrong at times it never saw."""

    def predict(latents, times):
        return {
            key: processes[key[0]].clean(value, torch.full_like(value, 7.0), times[key[0]])
            for key, value in latents.items()
        }

    return predict


def test_a_clean_state_is_its_own_clean_estimate():
    """An inversion's first step starts clean: the network is asked where it ends, and never at 0."""
    value = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    calls = []

    def spy(processes):
        def predict(latents, times):
            calls.append(times["a"][0].item())
            return wrong(processes)(latents, times) | {"a.v": value}

        return predict

    for solver in ("ddim", "dpmpp_2m", "heun"):
        up = run(spy, {"a": [0, 0.001], "b": 1}, supplied={"a.v": value}, steps=1, solver=solver)["a.v"]
        assert (up - value).abs().max() < 0.01, solver
    assert calls == [1.0] * 3


def test_a_step_that_ends_clean_is_not_evaluated_again():
    calls = []

    def counted(processes):
        predict = wrong(processes)
        return lambda latents, times: calls.append(times["a"][0].item()) or predict(latents, times)

    got = run(counted, "a", steps=3, solver="heun")["a.v"]
    assert len(calls) == 5 and 0.0 not in calls
    assert torch.equal(got, torch.full((4, 3), 7.0))


def test_redrawn_noise_is_another_at_every_evaluation():
    seen = []

    def spy(processes):
        predict = wrong(processes)
        return lambda latents, times: seen.append(latents["b.v"].clone()) or predict(latents, times)

    run(spy, {"a": [[0, 1], [0.5, 0.5], [1, 0]]}, steps=6, solver="ddim", redraws_noise=True)
    assert len(seen) == 6
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    seen.clear()
    run(spy, "a", steps=3, solver="ddim")
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])


@pytest.mark.parametrize(
    ("process", "bits"),
    [
        (Cold(noise=0.0, fades=False), "Cold leaves inf bits"),
        (Cold(noise=0.1, fades=False), "Cold leaves 3.3 bits"),
        (Gaussian(ScaledLinear()), "Gaussian leaves 0.0034 bits"),
        (Cold(), None),
        (Gaussian(Flow()), None),
    ],
    ids=str,
)
def test_ignoring_what_leaks_is_said_to_be_no_marginal_once(process, bits):
    def said(spec, **options):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(2):
                sample(
                    lambda latents, times: latents, spec, processes={"a": Gaussian(), "b": process},
                    shapes={"a.v": (3,), "b.v": (1, 2, 2)}, num=1, steps=1, **options,
                )  # fmt: skip
        return [str(row.message) for row in caught]

    got = said("a")
    assert len(got) == (bits is not None)
    assert not got or f"ignoring 'b' is no exact marginal: {bits} of each element at T" in got[0]
    assert not said("a, b") and not said("a", drop_ignored=True)
