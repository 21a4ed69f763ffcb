"""Spacings: knots and counts stay, times between them are even in what they say, and even paths are as they were."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unidiff_core import Encoded, Gaussian, Masked
from unidiff_core.process.gaussian.schedule import ScaledLinear
from unidiff_core.sampling.loop import sample, time_grid
from unidiff_core.sampling.spacing import LEAST, MOST, spaced
from unidiff_core.sampling.spec import SpecError, TimestepSpec
from unidiff_core.testing import GaussianOracle
from unidiff_core.testing.mixture import ExactMixture

PROCESSES = {"a": Gaussian(), "b": Gaussian(ScaledLinear(), "noise"), "w": Masked()}
SPACINGS = ["cosine", "log_snr"]
TWO = {"a": [[0, 1], [0.4, 0.2], [1, 0]], "b": [[0.25, 1], [1, 0]], "w": {"hold": [[0, 1], [1, 0.5]]}}


def parse(spec):
    return TimestepSpec.parse(spec, PROCESSES)


def times_of(spec, steps, name):
    return [[spec.times(place)[name] for place in row] for row in time_grid(spec, steps)]


def test_an_even_path_is_the_same_object_and_the_same_times():
    for spec in ("a, b", TWO, {"a": [0, 1]}):
        assert spaced(parse(spec), "uniform", PROCESSES) == parse(spec)
        assert spaced(parse(spec), {"a": "uniform"}, PROCESSES) == parse(spec)
    for steps in (3, 7, 50):
        assert times_of(parse("a"), steps, "a") == [[1 - i / steps for i in range(steps)] + [0]]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_knots_and_counts_stay_over_several_segments(spacing):
    plain, got = parse(TWO), spaced(parse(TWO), spacing, PROCESSES)
    assert got.segments() == plain.segments() == [(0, 0.25), (0.25, 0.4), (0.4, 1)]
    assert time_grid(got, 20) == time_grid(plain, 20)
    for place in (0.0, 0.4, 1.0):
        assert got.times(place)["a"] == plain.times(place)["a"]
    for place in (0.0, 0.1, 0.25, 1.0):
        assert got.times(place)["b"] == plain.times(place)["b"]
    for place in np.linspace(0, 1, 9):
        assert got.times(place)["w"] == plain.times(place)["w"]  # held: no solver goes along it
    a, b = ([time for row in times_of(got, 20, name) for time in row] for name in "ab")
    assert a != [time for row in times_of(plain, 20, "a") for time in row]
    assert b != [time for row in times_of(plain, 20, "b") for time in row]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["a", "b"])
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 60))
def test_times_fall_or_rise_all_the_way(spacing, name, start, end, steps):
    if abs(start - end) < 0.01:
        return
    (times,) = times_of(spaced(parse({name: [start, end]}), spacing, PROCESSES), steps, name)
    sign = 1 if start > end else -1
    assert times[0] == start and times[-1] == end and len(times) == steps + 1
    assert all(sign * (a - b) >= 0 for a, b in itertools.pairwise(times))


def test_times_are_even_in_what_the_spacing_says():
    for name in ("a", "b"):
        (times,) = times_of(spaced(parse(name), "log_snr", PROCESSES), 12, name)
        steps = torch.tensor([1000.0, *(1000 * time for time in times[1:-1]), 1.0], dtype=torch.float64)
        between = np.diff(PROCESSES[name].log_snr(steps).clamp(LEAST, MOST).numpy())
        assert np.allclose(between, between[0], rtol=2e-3), name
    (times,) = times_of(spaced(parse("a"), "cosine", PROCESSES), 12, "a")
    np.testing.assert_allclose(times, np.cos(np.pi / 2 * np.arange(13) / 12), atol=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_path_up_goes_through_the_times_of_the_path_down(spacing):
    (up,), (down,) = (times_of(spaced(parse({"a": row}), spacing, PROCESSES), 10, "a") for row in ([0, 1], [1, 0]))
    np.testing.assert_allclose(up, down[::-1], atol=1e-9)


def test_log_snr_pays_under_scaled_linear_noise():
    """What its option says: few steps, the error that the solver makes of an exact network."""
    processes = {name: Gaussian(ScaledLinear(), "noise") for name in "ab"}
    shapes = {"a.v": (6,), "b.v": (4,)}
    mixture = ExactMixture.random(processes, shapes, seed=2)
    options = {"processes": processes, "shapes": shapes, "num": 30, "dtype": torch.float64, "solver": "dpmpp_2m"}
    exact = sample(mixture, "a, b", steps=60, spacing="log_snr", **options)["a.v"]
    even, by_noise = (
        (sample(mixture, "a, b", steps=10, spacing=spacing, **options)["a.v"] - exact).square().mean().sqrt().item()
        for spacing in ("uniform", "log_snr")
    )
    assert by_noise < 0.2 * even, (by_noise, even)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_samples_are_those_of_even_times_but_for_the_error_of_the_solver(spacing):
    oracle = GaussianOracle.random({"a.v": (3,), "b.v": (2,)}, seed=0)
    options = {"processes": oracle.processes, "shapes": oracle.shapes, "num": 50, "dtype": torch.float64}
    exact = sample(oracle, "a, b", steps=100, solver="heun", **options)["a.v"]
    far = [
        (sample(oracle, "a, b", steps=steps, solver="dpmpp_2m", spacing=spacing, **options)["a.v"] - exact).abs().mean()
        for steps in (10, 40)
    ]
    assert far[1] < 0.5 * far[0] and far[1] < 0.05, far


def test_each_modality_has_its_own():
    spec = spaced(parse("a, b, w"), {"a": "cosine", "w": "cosine"}, PROCESSES)
    times = spec.times(0.5)
    assert times["a"] == times["w"] == pytest.approx(0.5**0.5) and times["b"] == 0.5
    everywhere = spaced(parse("a, w"), "log_snr", PROCESSES).times(0.3)
    assert everywhere["w"] == 0.7 != everywhere["a"]  # to those that have noise in numbers, as solvers are named
    encoded = spaced(TimestepSpec.parse("e", ["e"]), "log_snr", {"e": Encoded(2)})  # symbols whose noise is of numbers
    assert encoded.times(0.3)["e"] == everywhere["a"]


@pytest.mark.parametrize(
    ("spacing", "says"),
    [
        ("cosin", "unknown spacing 'cosin'.*did you mean cosine"),
        ("", "unknown spacing ''"),
        ({"b": "cosine"}, "a spacing is named for 'b', which a, w does not solve; solved: a, w"),
        ({"w": "log_snr"}, "'w' is of Masked, which has no noise in numbers; it takes uniform or cosine"),
    ],
)
def test_what_is_no_spacing_is_said(spacing, says):
    with pytest.raises(SpecError, match=says):
        spaced(parse("a, w"), spacing, PROCESSES)
    with pytest.raises(SpecError, match="'w' is of Masked"):
        spaced(parse("w"), "log_snr", PROCESSES)
