"""Schedulers of diffusers on our grid, against the exact oracle and against our own solvers."""

from __future__ import annotations

import math

import pytest
import torch

from unidiff_core.foundation.registry import UnknownNameError
from unidiff_core.process.gaussian.diffusers_solver import VERIFIED, DiffusersSolver
from unidiff_core.process.gaussian.schedule import Flow, ScaledLinear
from unidiff_core.process.gaussian.solver import GaussianSolver
from unidiff_core.process.process import find_solver
from unidiff_core.sampling.loop import sample
from unidiff_core.testing import GaussianOracle

SHAPES = {"a.grid": (1, 2, 2), "b.vector": (3,)}
SCHEDULES = {"flow": Flow(), "scaled_linear": ScaledLinear()}


def run(schedule, spec, solver, steps, num=16, **options):
    oracle = GaussianOracle.random(SHAPES, schedule=SCHEDULES[schedule])
    given = {"b.vector": oracle.draw(1, seed=3)["b.vector"].expand(num, -1)} if "b" in str(spec) else None
    options = {"supplied": given, "dtype": torch.float64} | options
    return oracle, sample(
        oracle, spec, processes=oracle.processes, shapes=oracle.shapes, num=num, steps=steps, solver=solver, **options
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("theirs", "ours"), [("DDIMScheduler", "ddim"), ("DPMSolverMultistepScheduler", "dpmpp_2m")])
@pytest.mark.parametrize(
    "spec",
    ["a | b", {"a": [[0, 1], [0.6, 0.3], [1, 0]], "b": 0}, {"a": [1, 0.25], "b": 0}],
    ids=["plain", "knot", "part"],
)
def test_the_same_method_is_the_same_to_five_digits(schedule, theirs, ours, spec):
    _, got = run(schedule, spec, f"DiffusersSolver({theirs})", 17)
    _, want = run(schedule, spec, ours, 17)
    gap = (got["a.grid"] - want["a.grid"]).abs().max().item()
    print(f"{theirs}, {schedule}: largest difference {gap:.1e}")
    assert gap < 1e-5


ORDERS = dict.fromkeys(VERIFIED, 2) | {"DDIMScheduler": 1, "EulerDiscreteScheduler": 1, "UniPCMultistepScheduler": 3}
ORDERS |= {"DPMSolverSinglestepScheduler, 3": 3}  # the released sampler's
"""Of the method; UniPC of order 2 corrects by a third evaluation."""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scheduler", ORDERS)
def test_every_verified_scheduler_has_its_order_and_the_exact_limit(schedule, scheduler):
    """Away from both ends of time, where the step in log(alpha/sigma) shrinks with the number of steps."""
    oracle = GaussianOracle.random(SHAPES, schedule=SCHEDULES[schedule])
    spec, supplied = {"a": [0.8, 0.2], "b": 0}, oracle.draw(16, seed=3)

    def solve(solver, steps):
        return run(schedule, spec, solver, steps, supplied=supplied)[1]["a.grid"]

    exact = solve("heun", 500)
    counts = (18, 36) if ORDERS[scheduler] == 3 else (20, 40)  # singlestep has its order where 6 divides the number
    errors = [((solve(f"DiffusersSolver({scheduler})", n) - exact).norm() / exact.norm()).item() for n in counts]
    slope = math.log2(errors[0] / errors[1])
    print(f"{scheduler}, {schedule}: {errors[0]:.1e}, {errors[1]:.1e} at {counts} steps, slope {slope:.2f}")
    assert abs(slope - ORDERS[scheduler]) < 0.5 and errors[1] < (2e-2 if ORDERS[scheduler] == 1 else 1e-3)


def test_a_scheduler_that_is_not_verified_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'PNDMScheduler' of diffusers is not verified .*; verified: DDIMScheduler, "):
        find_solver("DiffusersSolver(PNDMScheduler)", GaussianSolver)
    with pytest.raises(UnknownNameError, match="unknown solver 'dimm'; known: DiffusersSolver, analytic, ddim, "):
        find_solver("dimm", GaussianSolver)


def test_a_path_that_goes_up_is_refused():
    with pytest.raises(ValueError, match="only goes down in time"):
        run("flow", {"a": [0, 1]}, "DiffusersSolver(DDIMScheduler)", 5, supplied={"a.grid": torch.zeros(16, 1, 2, 2)})


def test_the_order_is_an_option_of_those_that_have_several():
    _, second = run("flow", "a | b", "DiffusersSolver(DPMSolverMultistepScheduler, 2)", 12)
    _, third = run("flow", "a | b", "DiffusersSolver(DPMSolverMultistepScheduler, 3)", 12)
    assert not torch.allclose(second["a.grid"], third["a.grid"])
    with pytest.raises(ValueError, match="has one order"):
        run("flow", "a | b", DiffusersSolver("DDIMScheduler", 3), 5)


def test_the_class_itself_serves_as_well_as_its_name():
    from diffusers import DDIMScheduler

    assert DiffusersSolver(DDIMScheduler).scheduler_class == "DDIMScheduler"
    with pytest.raises(UnknownNameError, match="a solver is a name or a GaussianSolver, not <class"):
        find_solver(DDIMScheduler, GaussianSolver)
