"""Cold diffusion: bases, the two samplers, and that with noise every Gaussian solver is as exact as ever."""

from __future__ import annotations

import itertools
import math
from unittest.mock import patch

import pytest
import torch

from unidiff_core import Stream
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.registry import Registry
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.process.cold.degradation import BlockMean, Blur, Crop
from unidiff_core.process.cold.process import Cold
from unidiff_core.process.cold.solver import Improved, Naive
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import Flow
from unidiff_core.process.process import History, MixError, Step
from unidiff_core.sampling.loop import sample
from unidiff_core.serialization.description import build, describe
from unidiff_core.testing import ExactMixture, GaussianOracle

DOUBLE = torch.float64
DEGRADATIONS = [Blur(2.0), BlockMean(2), Crop()]
SHAPES = [(2, 8, 4), (1, 8), (1, 4, 4, 8)]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def draws(num, name="noise"):
    return Draws(0, name, "a.v", 0, torch.arange(num))


def degraded(degradation, x, t):
    kept = degradation.kept(degradation.levels(tuple(x.shape[1:])), torch.tensor(t, dtype=DOUBLE))
    return degradation.data(kept * degradation.coordinates(x))


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda row: type(row).__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bases_are_orthonormal_and_all_is_kept_at_0(degradation, shape):
    x = normal(5, *shape)
    y = degradation.coordinates(x)
    assert y.shape == x.shape and torch.allclose(degradation.data(y), x, atol=1e-12)
    assert torch.allclose(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    levels = degradation.levels(shape)
    kept = torch.stack([degradation.kept(levels, torch.tensor(t, dtype=DOUBLE)) for t in (0.0, 200.0, 600.0, 1000.0)])
    assert (kept[0] == 1).all() and (kept.diff(dim=0) <= 0).all() and (kept[-1] < 1).any()


def test_each_degradation_is_what_it_says():
    x = normal(1, 1, 8, 8)
    blocks = degraded(BlockMean(3), x, 1000 / 3)  # the first of three scales is gone
    means = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert torch.allclose(blocks, means.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.allclose(degraded(BlockMean(3), x, 1000.0), x.mean().expand_as(x))
    dot = torch.zeros(1, 1, 1, 65, dtype=DOUBLE)
    dot[..., 32] = 1
    place = torch.arange(65, dtype=DOUBLE) - 32
    bell = (-place.square() / (2 * 3.0**2)).exp() / (3.0 * math.sqrt(2 * math.pi))
    assert torch.allclose(degraded(Blur(6.0), dot, 500.0)[0, 0, 0], bell, atol=1e-6)
    left = degraded(Crop(1e-6), torch.ones(1, 1, 9, 9, dtype=DOUBLE), 500.0)[0, 0]
    assert left.sum() == 25 and left[2:7, 2:7].all()
    assert degraded(Crop(1e-6), torch.ones(1, 1, 9, 9, dtype=DOUBLE), 1000.0).sum() == 1


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("fades", [True, False])
def test_corruption_is_its_moments(noise, fades):
    process, x = Cold(Blur(3.0), noise, fades), normal(6, 2, 4, 4)
    t = torch.tensor([0.0, 1.0, 250.0, 500.0, 999.0, 1000.0], dtype=DOUBLE)
    got = process.corrupt(x, t, draws(6)).corrupted
    assert torch.equal(got[0], x[0])
    alpha, sigma = process.moments(t, (2, 4, 4))
    noise = draws(6).normal((2, 4, 4)).double() * sigma[:, None, None, None]
    basis = process.degradation
    assert torch.allclose(got, basis.data(alpha * basis.coordinates(x) + basis.coordinates(noise)), atol=1e-12)
    assert process.forgets == fades and (process.leak == 0) == fades


def take(process, solver, x, clean, t, t_next):
    return process.step(x, clean, Step(t, t_next, draws(len(x)), History([t, t_next])), solver)


def test_naive_and_improved_are_the_papers():
    process, x, clean = Cold(Blur(3.0), noise=0.0, fades=False), normal(5, 1, 4, 4), normal(5, 1, 4, 4, seed=1)
    before, after = degraded(Blur(3.0), clean, 600.0), degraded(Blur(3.0), clean, 400.0)
    assert torch.allclose(take(process, Naive(), x, clean, 600.0, 400.0), after)
    assert torch.allclose(take(process, Improved(), x, clean, 600.0, 400.0), after + x - before)
    noisy = Cold(Blur(3.0), noise=0.3, fades=False)
    assert torch.allclose(take(noisy, Improved(), x, clean, 600.0, 400.0), after + 400 / 600 * (x - before))
    noise = draws(5).normal((1, 4, 4)).double()
    basis = Blur(3.0)
    expected = after + 0.3 * 0.4 * basis.data(noise)  # drawn in coordinates
    assert torch.allclose(take(noisy, Naive(), x, clean, 600.0, 400.0), expected)
    assert torch.allclose(take(noisy, Improved(), x, clean, 600.0, 0.0), clean)


def test_improved_forgives_what_f_treats_alike():
    """A wrong mean of the estimate is kept by the blur at every time: improved recovers the data, naive does not."""
    process, x = Cold(Blur(3.0), noise=0.0, fades=False), normal(5, 1, 4, 4)
    found = {}
    for solver in (Naive(), Improved()):
        state, grid = degraded(Blur(3.0), x, 1000.0), [1000.0, 700.0, 300.0, 0.0]
        for t, t_next in itertools.pairwise(grid):
            state = take(process, solver, state, x + 5.0, t, t_next)
        found[type(solver)] = (state - x).abs().max().item()
    assert found[Improved] < 1e-12 and found[Naive] > 4


def mixture(process, oracle):
    """The joint Gaussian under a process, as a mixture of one cell."""
    means = {key: oracle.mean[None, rows].reshape(1, *oracle.shapes[key]) for key, rows in oracle.rows.items()}
    return ExactMixture({"a": process}, {}, torch.zeros(1), means, oracle.covariance)


def law(process, oracle, solver, steps, *, fresh=False):
    """Mean and covariance of what `sample` gives, without sampling: it is affine in its noise, so that a run without
    noise and one for each number of it say all. `fresh`: whether steps draw noise, as all but the last then do.
    """
    size = len(oracle.mean)
    num = 1 + size * (steps if fresh else 1)

    def said(draws, kind, shape):
        """At the start the first row after the one without noise, and so on, at each step the next ones."""
        first = 1 if draws.purpose == "sample noise" else 1 + size * (1 + draws.step)
        units = torch.zeros(num, size, dtype=DOUBLE)
        if first < num:  # the last step, whose noise is of size 0, has no rows
            units[first : first + size] = torch.eye(size, dtype=DOUBLE)
        return units.reshape(num, *shape)

    with patch.object(Draws, "_draw", said):
        got = sample(
            mixture(process, oracle), "a", processes={"a": process}, shapes=oracle.shapes, num=num, steps=steps,
            solver=solver, dtype=DOUBLE,
        )["a.v"].flatten(1)  # fmt: skip
    by_noise = got[1:] - got[0]
    return got[0], by_noise.T @ by_noise


@pytest.mark.parametrize(
    "name",
    [
        "ddim",
        "dpmpp_2m",
        "dpmpp_3m",
        "heun",
        "ddpm",
        "renoise",
        "family(0.5, 0.1)",
        "DiffusersSolver(UniPCMultistepScheduler)",
    ],
)
def test_without_degradation_it_is_gaussian_noise_under_every_solver(name):
    """A blur of almost no width, fading on the straight line: `Gaussian`'s law, but for the rounding."""
    oracle, fresh = GaussianOracle.random({"a.v": (1, 2, 2)}), name in ("ddpm", "renoise", "family(0.5, 0.1)")
    rows = [law(process, oracle, name, 6, fresh=fresh) for process in (Cold(Blur(1e-9)), Gaussian(Flow(), "clean"))]
    for cold, gaussian in zip(*rows, strict=True):
        assert (cold - gaussian).abs().max() < 1e-8


@pytest.mark.parametrize("degradation", [Blur(1.5), BlockMean(1), Crop()], ids=lambda row: type(row).__name__)
def test_with_full_noise_every_solver_goes_to_the_exact_law_at_its_order(degradation):
    """The mean is exact at any number of steps; the covariance's error halves, or falls to a quarter, with the step."""
    oracle = GaussianOracle.random({"a.v": (1, 2, 4)}, seed=2)
    size = 2.6 if isinstance(degradation, Crop) else 1.0  # its cells go dark in a quarter of the time
    for solver, steps, least, most, error in [
        ("ddpm", 25, 1.5, 2.2, 0.16 * size),
        ("heun", 32, 3.2, 5.5, 0.0125 * size),
        ("dpmpp_2m", 64, 2.8, 4.5, 0.0125 * size),
    ]:
        (mean, coarse), (_, fine) = (
            law(Cold(degradation), oracle, solver, n, fresh=solver == "ddpm") for n in (steps, 2 * steps)
        )
        errors = [(row - oracle.covariance).abs().max().item() for row in (coarse, fine)]
        print(f"{type(degradation).__name__}, {solver}: {errors}")
        assert (mean - oracle.mean).abs().max() < 1e-12
        assert least < errors[0] / errors[1] < most and errors[1] < error


def test_samples_do_not_depend_on_the_batch():
    oracle, process = GaussianOracle.random({"a.v": (1, 4, 4)}), Cold(Blur(2.0))
    options = {"processes": {"a": process}, "shapes": oracle.shapes, "steps": 4, "solver": "ddpm", "dtype": DOUBLE}
    exact = mixture(process, oracle)
    whole = sample(exact, "a", num=5, **options)["a.v"]
    parts = [sample(exact, "a", num=n, first_index=i, **options)["a.v"] for i, n in [(0, 2), (2, 3)]]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-10)


def test_without_noise_one_start_gives_one_sample_and_the_start_is_degraded():
    process = Cold(Blur(3.0), noise=0.0, fades=False)
    start = process.start((1, 8, 8), draws(20000))
    alpha, _ = process.moments(torch.tensor(float(T), dtype=DOUBLE), (1, 8, 8))
    spread = process.degradation.coordinates(start).std(0)
    assert torch.allclose(spread, alpha.float(), atol=0.02)
    assert process.leak == math.inf and Cold(noise=0.1, fades=False).leak == pytest.approx(0.5 * math.log2(101))


def test_medians_have_no_guidance_and_learn_the_median():
    process = Cold(error="absolute")
    with pytest.raises(MixError, match="a weighted sum of medians estimates nothing"):
        process.mix([normal(1, 1, 2, 2)] * 2, [2.0, -1.0])
    assert Cold().estimate == "mean" and process.estimate == "median"
    x = torch.tensor([0.0, 0.0, 9.0], dtype=DOUBLE)[:, None, None, None]
    t = time_tensor(500.0, 3)
    for row, best in [(process, 0.0), (Cold(), 3.0)]:
        corruption = row.corrupt(x, t, draws(3))
        grid = torch.linspace(-1, 9, 101, dtype=DOUBLE)
        losses = [row.loss(value.expand_as(x), corruption, t).mean().item() for value in grid]
        assert grid[losses.index(min(losses))].item() == pytest.approx(best, abs=1e-9)


def test_what_does_not_fit_is_refused():
    for stream in (Stream.sequence(4, 3), Stream.vector(4), Stream.symbols(4, vocabulary=3)):
        with pytest.raises(ValueError, match="degrades grids"):
            Cold().seen(stream)
    with pytest.raises(ValueError, match="does not divide into blocks of 8 cells a side; give BlockMean fewer scales"):
        Cold(BlockMean(3)).seen(Stream.grid(1, 12, 12))
    for make in (
        lambda: Cold(noise=-1),
        lambda: Cold(error="l3"),
        lambda: Blur(0),
        lambda: BlockMean(0),
        lambda: Crop(0),
    ):
        with pytest.raises(ValueError, match=r"not -1|unknown error 'l3'|above 0 cells, not 0|not 0"):
            make()


def test_it_is_described_and_built_again():
    registry = Registry()
    for cls in (Cold, Blur, BlockMean, Crop):
        registry.add(cls)
    config = describe(Cold(BlockMean(2), 0.1, False, "absolute"), registry)
    again = build(config, registry)
    assert config["degradation"] == {"class": "BlockMean", "scales": 2} and describe(again, registry) == config
