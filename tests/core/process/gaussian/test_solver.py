"""The family of one-estimate steps: its members, its domain, and that its variance is the forward process's."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unidiff_core import Modality
from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.process.clean_std import CleanStd
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import Flow, ScaledLinear
from unidiff_core.process.gaussian.solver import GaussianSolver, alpha_sigma, ancestral
from unidiff_core.process.process import History, Step, find_solver
from unidiff_core.sampling.loop import sample
from unidiff_core.testing import GaussianOracle
from unidiff_core.training.law import Uniform
from unidiff_core.training.objective import Objective

DOUBLE = torch.float64
ETAS = [0, 0.5, 1, "max"]


class Ones:
    """In place of draws: noise that is 1 everywhere, so that a step shows its coefficient."""

    def __init__(self, num):
        self.num = num

    def normal(self, shape):
        return torch.ones(self.num, *shape)


def draws(num, name="x"):
    return Draws(0, name, "a.v", 0, torch.arange(num))


def take(name, schedule, x, clean, t, t_next, noise=None, clean_std=None):
    step = Step(t, t_next, noise or draws(len(x)), History([t, t_next]), clean_std)
    return find_solver(name, GaussianSolver).step(schedule, x, clean, step)


@pytest.mark.parametrize("schedule", [Flow(), ScaledLinear()], ids=["flow", "scaled_linear"])
@pytest.mark.parametrize(("t", "t_next"), [(1000.0, 900.0), (700.0, 650.0), (20.0, 0.0)])
def test_ddim_ddpm_and_renoise_are_members_bit_for_bit(schedule, t, t_next):
    x, clean = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    (alpha, sigma), (alpha_next, sigma_next) = alpha_sigma(schedule, t), alpha_sigma(schedule, t_next)
    direction, noise = (x - alpha * clean) / sigma, draws(50).normal((3,))
    ddim = alpha_next * clean + sigma_next * direction
    fresh = sigma_next * math.sqrt(max(0.0, 1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2))
    ddpm = alpha_next * clean + math.sqrt(max(0.0, sigma_next**2 - fresh**2)) * direction + fresh * noise
    for member, by_eta, expected in [
        ("ddim", "family(0)", ddim),
        ("ddpm", "family(1)", ddpm),
        ("renoise", "family(max)", alpha_next * clean + sigma_next * noise),
    ]:
        assert torch.equal(take(member, schedule, x, clean, t, t_next), expected)
        assert torch.equal(take(by_eta, schedule, x, clean, t, t_next), expected)


def moments_after(oracle, eta, clean_std, t, t_next):
    """Covariance of x at `t_next`, by algebra: a step from exact estimates is affine, its noise one coefficient."""
    size = len(oracle.mean)

    def moved(x, noise):
        clean = oracle({"a.v": x}, {"a": time_tensor(t, len(x))})["a.v"]
        step = Step(t, t_next, noise, History([t, t_next]))
        return ancestral(oracle.schedule, x, clean, step, eta=eta, clean_std=clean_std)

    zero = torch.zeros(1, size, dtype=DOUBLE)
    still = type("Zeros", (), {"normal": lambda _, shape: torch.zeros(1, *shape)})()
    origin = moved(zero, still)
    jacobian = (
        moved(torch.eye(size, dtype=DOUBLE), type("", (), {"normal": lambda _, s: torch.zeros(size, *s)})()) - origin
    )
    noise = (moved(zero, Ones(1)) - origin).square().mean()
    alpha, sigma = alpha_sigma(oracle.schedule, t)
    before = alpha**2 * oracle.covariance + sigma**2 * torch.eye(size, dtype=DOUBLE)
    return jacobian.T @ before @ jacobian + noise * torch.eye(size, dtype=DOUBLE)


def optimal_std(oracle, t):
    """√(trace of the posterior covariance / d)."""
    alpha, sigma = (torch.full_like(oracle.mean, value) for value in alpha_sigma(oracle.schedule, t))
    posterior = oracle.covariance - oracle.gain(alpha, sigma) @ (alpha[:, None] * oracle.covariance)
    return (posterior.trace() / len(oracle.mean)).sqrt().item()


@pytest.mark.parametrize("schedule", [Flow(), ScaledLinear()], ids=["flow", "scaled_linear"])
def test_with_the_posteriors_std_a_step_has_the_forward_variance(schedule):
    """Exactly for isotropic data, in the trace for any; without it too little, the less the more noise is fresh."""
    isotropic = GaussianOracle(
        {"a.v": (4,)}, torch.arange(4.0, dtype=DOUBLE), 0.6 * torch.eye(4, dtype=DOUBLE), schedule
    )
    correlated = GaussianOracle.random({"a.v": (4,)}, schedule=schedule)
    for t, t_next in [(1000.0, 800.0), (700.0, 300.0), (300.0, 10.0)]:
        alpha, sigma = alpha_sigma(schedule, t_next)
        for oracle in (isotropic, correlated):
            truth = alpha**2 * oracle.covariance + sigma**2 * torch.eye(4, dtype=DOUBLE)
            std = optimal_std(oracle, t)
            lost = []
            for eta in ETAS:
                covariance = moments_after(oracle, eta, std, t, t_next)
                assert abs((covariance - truth).trace()) < 1e-12
                if oracle is isotropic:
                    assert (covariance - truth).abs().max() < 1e-12
                lost.append((truth - moments_after(oracle, eta, 0.0, t, t_next)).trace().item())
            assert lost[-1] > 0.01 and all(a < b + 1e-12 for a, b in itertools.pairwise(lost))
        assert (moments_after(correlated, 1, std, t, t_next) - truth).abs().max() > 1e-4  # a scalar cannot do it


def test_the_measured_std_is_the_exact_one():
    """Estimator B at the oracle, as the objective measures it, against the posterior's trace."""
    oracle = GaussianOracle.random({"a.v": (6,)}, schedule=Flow())
    modality = Modality(Codec6(), Gaussian(Flow(), "clean"))
    objective, num = Objective({"a": modality}, {"a": Uniform()}), 40000
    batch = Batch(torch.arange(num), 0)
    errors = objective.clean_errors(
        oracle.draw(num), batch, lambda latents, times, _: by_sample(oracle, latents, times), 16
    )
    table = CleanStd.of_sums(errors["a.v"])
    assert len(table.points) == 16
    for t, value in table.points:
        assert value == pytest.approx(optimal_std(oracle, t), rel=0.02)
    assert table(0) == 0 and table(T) == table.points[-1][1]


class Codec6:
    streams = ()


def by_sample(oracle, latents, times):
    """The oracle at a time of its own for each sample: in the eigenbasis all is scalar."""
    values, basis = torch.linalg.eigh(oracle.covariance)
    s = (times["a"] / T)[:, None]
    x = (latents["a.v"] - (1 - s) * oracle.mean) @ basis
    return {"a.v": oracle.mean + ((1 - s) * values / ((1 - s) ** 2 * values + s**2) * x) @ basis.T}


def test_by_name_in_the_loop_it_brings_the_variance_back():
    """Five steps of all-fresh noise on isotropic data: the states keep the forward variance with it alone."""
    oracle = GaussianOracle({"a.v": (4,)}, torch.zeros(4, dtype=DOUBLE), 0.5 * torch.eye(4, dtype=DOUBLE), Flow())
    processes = oracle.processes
    grid = [float(t) for t in range(1, T + 1)]
    processes["a"].clean_std = {"a.v": CleanStd([(t, optimal_std(oracle, t)) for t in grid])}
    ratio = {}
    for solver in ("renoise", "analytic(max)", "analytic(0)", "ddim"):
        seen = []
        sample(
            oracle, "a", processes=processes, shapes=oracle.shapes, num=20000, steps=5, solver=solver, dtype=DOUBLE,
            on_step=lambda report, seen=seen: seen.append((report.times["a"], report.latents["a.v"].var().item())),
        )  # fmt: skip
        s, variance = seen[-2]
        ratio[solver] = variance / (0.5 * (1 - s) ** 2 + s**2)
    print({name: round(value, 3) for name, value in ratio.items()})
    assert abs(ratio["analytic(max)"] - 1) < 0.02 and abs(ratio["analytic(0)"] - 1) < 0.02
    assert ratio["renoise"] < 0.9 and ratio["renoise"] < ratio["ddim"]


def test_the_last_step_is_the_estimate():
    x, clean = torch.randn(2, 5, 3)
    assert torch.equal(take("family(max, 0.7)", Flow(), x, clean, 200.0, 0.0), clean)
    assert torch.equal(take("analytic(1)", Flow(), x, clean, 200.0, 0.0, clean_std=0.7), clean)


def test_what_is_outside_the_domain_is_refused():
    x = clean = torch.zeros(2, 3)
    with pytest.raises(
        ValueError, match=r"eta = 9 asks for noise of .* the largest for this step is 1\.\d+, or say max"
    ):
        take("family(9)", Flow(), x, clean, 500.0, 250.0)
    largest = 1 / math.sqrt(1 - (0.5 * 0.25 / (0.75 * 0.5)) ** 2)
    assert take(f"family({largest})", Flow(), x, clean, 500.0, 250.0).isfinite().all()
    for name in ("family(-1)", "family(.nan)", "family(much)", "family(1, -0.1)", "family(1, all)"):
        with pytest.raises(ValueError, match=r"eta is a number|clean_std is a number"):
            find_solver(name, GaussianSolver)


def test_noise_on_the_way_up_is_refused_and_an_eta_not_used_there():
    x, clean = torch.randn(2, 5, 3)
    for name, std in [("family(0, 0.1)", None), ("analytic(1)", 0.1)]:
        with pytest.raises(ValueError, match=r"goes up, from 0\.2 to 0\.4, .* take ddim"):
            take(name, Flow(), x, clean, 200.0, 400.0, clean_std=std)
    up = take("ddim", Flow(), x, clean, 200.0, 400.0)
    for name in ("ddpm", "renoise", "family(7)"):
        assert torch.equal(take(name, Flow(), x, clean, 200.0, 400.0), up)


def test_analytic_says_what_it_lacks():
    with pytest.raises(ValueError, match=r"analytic needs .* 'a\.v', which this model lacks: .* MeasureCleanStd"):
        take("analytic", Flow(), torch.zeros(2, 3), torch.zeros(2, 3), 200.0, 100.0)


def test_a_table_says_what_is_wrong():
    for points in ([], [(0.0, 0.0)], [(5.0, 1.0), (5.0, 2.0)], [(2000.0, 1.0)]):
        with pytest.raises(ValueError, match="times of a clean_std"):
            CleanStd(points)
    with pytest.raises(ValueError, match="errors of a clean_std"):
        CleanStd([(5.0, math.nan)])
