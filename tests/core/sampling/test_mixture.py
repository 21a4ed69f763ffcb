"""Symbols and numbers together, on the exact mixture: every kind of query, and the two ways to take turns."""

from __future__ import annotations

import itertools
import math
from unittest.mock import patch

import pytest
import torch

from tests.core.enumerated import DOUBLE, scripted
from unidiff_core.foundation.time import T
from unidiff_core.process.cold.degradation import BlockMean
from unidiff_core.process.cold.process import Cold
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.masked import process as masked
from unidiff_core.process.masked.process import Masked
from unidiff_core.sampling.loop import sample
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import SpecError, TimestepSpec
from unidiff_core.testing import ExactMixture

NUM = 4000
PAIRS = torch.cartesian_prod(torch.arange(3), torch.arange(3))
MEANS = torch.tensor([-3.0, -1.0, 0.5, -2.0, 0.0, 2.0, 0.5, 1.5, 3.5], dtype=DOUBLE)[:, None]
STD = 0.3


def words_and_a_number():
    """Two symbols of three, and a number of standard deviation 0.3 around a mean that both say."""
    weights = torch.randn(9, generator=torch.Generator().manual_seed(0))
    processes = {"c": Masked(3), "x": Gaussian()}
    return ExactMixture(processes, {"c.ids": PAIRS}, weights, {"x.v": MEANS}, torch.tensor([[STD**2]]))


def labelled_numbers():
    """A label of three, and a number that is far from ambiguous given it (processes.md's mixture)."""
    return ExactMixture(
        {"c": Masked(3), "x": Gaussian()},
        {"c.ids": torch.arange(3)[:, None]},
        torch.tensor([0.5, 0.3, 0.2]).log(),
        {"x.v": torch.tensor([[-2.0], [0.5], [3.0]])},
        torch.tensor([[STD**2]]),
    )


def run(oracle, spec, num=NUM, **options):
    options = {"steps": 24, "solver": {name: "heun" for name in "xy" if f"{name}" in str(spec)}} | options
    solved = TimestepSpec.parse(spec, oracle.processes).solved
    options["solver"] = {name: row for name, row in options["solver"].items() if name in solved}
    return sample(oracle, spec, processes=oracle.processes, shapes=oracle.shapes, num=num, dtype=DOUBLE, **options)


def assert_counted(ids, cells, chances):
    """Counts of each cell within 4.5 standard errors of their expectation; `chances` are of each sample, or of all."""
    is_cell = (ids[:, None] == cells).all(-1).double()
    assert is_cell.sum() == len(ids)
    chances = chances.expand(len(ids), -1)
    error = (chances * (1 - chances)).sum(0).sqrt()
    gap = (is_cell - chances).sum(0).abs()
    assert (gap <= 4.5 * error + 1e-9).all(), gap / error


def assert_numbers(x, mean, variance, bias=0.0):
    """Residuals of mean 0 and of this variance, within 4.5 standard errors, whatever the law of each."""
    z = (x - mean) / variance.sqrt()
    assert abs(z.mean().item()) < 4.5 * z.std().item() / len(z) ** 0.5 + bias
    squares = z.square()
    assert abs(squares.mean().item() - 1) < 4.5 * squares.std().item() / len(z) ** 0.5 + bias


def moments(known):
    """Mean and variance ``[b]`` of the one number, given what is known."""
    mean = (known.weights * known.means[..., 0]).sum(1)
    within = (known.weights * known.covariances[..., 0, 0]).sum(1)
    return mean, within + (known.weights * (known.means[..., 0] - mean[:, None]).square()).sum(1)


def steady(**times):
    return {name: torch.full((NUM,), t * T, dtype=DOUBLE) for name, t in times.items()}


def test_marginals():
    oracle = words_and_a_number()
    prior = oracle.posterior({}, {})
    assert_counted(run(oracle, "c", steps=2)["c.ids"], PAIRS, prior.weights)
    assert_numbers(run(oracle, "x")["x.v"][:, 0], *moments(prior), bias=0.03)


@pytest.mark.parametrize("held", [0.0, 0.3])
def test_symbols_given_numbers_clean_or_noisy(held):
    oracle = words_and_a_number()
    got = run(oracle, {"c": [1, 0], "x": held}, steps=2, supplied={"x.v": oracle.draw(NUM)["x.v"]})
    known = oracle.posterior({"x.v": got["x.v"]}, steady(x=held))
    assert_counted(got["c.ids"], PAIRS, known.weights)
    assert known.weights.amax(1).mean() < 0.99, "it is not told by the number alone"


@pytest.mark.parametrize("held", [0.0, 0.5])
def test_numbers_given_symbols_all_or_half_of_them(held):
    oracle = words_and_a_number()
    got = run(oracle, {"x": [1, 0], "c": held}, supplied={"c.ids": oracle.draw(NUM)["c.ids"]})
    assert ((got["c.ids"] == 3).sum(1) == 2 * held).all()
    assert_numbers(got["x.v"][:, 0], *moments(oracle.posterior({"c.ids": got["c.ids"]}, steady(c=held))), bias=0.03)


@pytest.mark.parametrize("order", ["c then x", "x then c"])
def test_one_after_the_other_is_the_joint(order):
    first, second = order.split(" then ")
    oracle = words_and_a_number()
    got = run(oracle, {first: [[0, 1], [0.5, 0]], second: [[0.5, 1], [1, 0]]}, steps=48)
    assert_joint(oracle, got, bias=0.03)


def assert_joint(oracle, got, bias):
    """Symbols by their counts, the number around the mean of the symbols that came with it."""
    assert_counted(got["c.ids"], oracle.symbols["c.ids"], oracle.posterior({}, {}).weights)
    known = oracle.posterior({"c.ids": got["c.ids"]}, steady(c=0))
    assert_numbers(got["x.v"][:, 0], *moments(known), bias=bias)


@pytest.mark.parametrize("interleave", ["together", "discrete_first"])
def test_both_at_once_are_the_joint(interleave):
    """Within the intervals and a bias of steps: in 32 steps 2 % of the standard deviation."""
    for oracle in (words_and_a_number(), labelled_numbers()):
        got = run(oracle, "c, x", steps=32, interleave=interleave)
        assert_joint(oracle, got, bias=0.06)


def test_three_modalities_of_three_processes():
    """Masked symbols, a grid of cold numbers, a noisy vector: what is solved is of its law given what is held."""
    processes = {"c": Masked(2), "y": Cold(BlockMean(1)), "x": Gaussian()}
    oracle = ExactMixture.random(processes, {"c.ids": (2,), "y.v": (1, 2), "x.v": (1,)}, seed=4)
    data = oracle.draw(NUM)
    got = run(oracle, "c | x, y@0.4", steps=2, supplied={key: data[key] for key in ("x.v", "y.v")})
    known = oracle.posterior({key: got[key] for key in ("x.v", "y.v")}, steady(x=0, y=0.4))
    assert_counted(got["c.ids"], oracle.symbols["c.ids"], known.weights)
    got = run(oracle, "x, c | y", steps=32, interleave="discrete_first", supplied={"y.v": data["y.v"]})
    assert_counted(got["c.ids"], oracle.symbols["c.ids"], oracle.posterior({"y.v": data["y.v"]}, steady(y=0)).weights)
    known = oracle.posterior({key: got[key] for key in ("c.ids", "y.v")}, steady(c=0, y=0))
    mean, covariance = (known.weights[..., None] * known.means).sum(1)[:, 2], known.covariances[0, :, 2, 2]
    assert_numbers(got["x.v"][:, 0], mean, (known.weights * covariance).sum(1), bias=0.06)


# --- taking turns: the joint law without sampling ---

PLACES = torch.linspace(-6, 6, 241, dtype=DOUBLE)


def errors(steps, solver, interleave, places=PLACES):
    """Of ``c, x`` on `words_and_a_number`: total variation of the symbols; error of x's mean and of its standard
    deviation, given the symbols, averaged over them.

    By quadrature over the start of x, and every symbol at every place in every order, each with its probability.
    """
    oracle = words_and_a_number()
    orders = torch.tensor([[0, 1], [1, 0]])
    place, order, cell = torch.cartesian_prod(torch.arange(len(places)), torch.arange(2), torch.arange(9)).T
    weights = (-places.square() / 2).exp() / math.sqrt(2 * math.pi) * (places[1] - places[0])
    log_chance = torch.zeros(len(cell), dtype=DOUBLE)

    def chosen(mask, logits, draws):
        """The symbols that this sample is to get, each with its probability."""
        log_chance.add_((logits.log_softmax(-1).gather(-1, PAIRS[cell][..., None])[..., 0] * mask).sum(1))
        return PAIRS[cell][mask], logits[mask]

    states = {"x.v": places[place][:, None], "c.ids": torch.full((len(cell), 2), 3)}
    said = {"sample noise/order": orders[order].double() / 2}
    with scripted("c.ids", said), patch.object(masked, "chosen", chosen):
        options = {"steps": steps, "solver": {"x": solver}, "interleave": interleave, "states": states}
        got = run(oracle, "c, x", num=len(cell), **options)
    weights = weights[place] / 2 * log_chance.exp()

    def summed(values):
        return torch.zeros(9, dtype=DOUBLE).index_add_(0, cell, values)

    share, target, x = summed(weights), oracle.log_weights.exp(), got["x.v"][:, 0]
    mean = summed(weights * x) / share
    std = (summed(weights * (x - mean[cell]).square()) / share).sqrt()
    return (
        (share - target).abs().sum().item() / 2,
        (target * (mean - MEANS[:, 0]).abs()).sum().item(),
        (target * std).sum().item() - STD,
    )


def test_together_is_of_first_order_and_discrete_first_of_the_solvers():
    """Halving the step halves ddim's error; heun's falls faster, both ways, and with symbols first all is smaller."""
    together = [errors(steps, "ddim", "together")[0] for steps in (4, 8, 16)]
    assert all(1.6 < a / b < 2.5 for a, b in itertools.pairwise(together)), together
    heun = [errors(steps, "heun", "together")[0] for steps in (4, 8)]
    first = [errors(steps, "heun", "discrete_first")[0] for steps in (4, 8)]
    assert heun[0] / heun[1] > 3 and first[0] / first[1] > 3, (heun, first)
    assert heun[1] < together[1] / 5 and first[1] < heun[1]
    assert errors(8, "ddim", "discrete_first")[0] < together[1] / 2


def evaluations(interleave, spec="c, x", solver="ddim", **options):
    """What each evaluation sees: hidden symbols, the symbols' time, the number's time."""
    oracle, seen = words_and_a_number(), []

    def spy(latents, times):
        seen.append(((latents["c.ids"][0] == 3).sum().item(), *(round(times[name][0].item()) for name in "cx")))
        return oracle(latents, times)

    sample(
        spy, spec, processes=oracle.processes, shapes=oracle.shapes, num=1, steps=4, solver={"x": solver},
        interleave=interleave, dtype=DOUBLE, **options,
    )  # fmt: skip
    return seen


def test_who_sees_what():
    assert evaluations("together") == [(2, 1000, 1000), (2, 750, 750), (1, 500, 500), (1, 250, 250)]
    assert evaluations("together", solver="heun") == [
        *[(2, 1000, 1000), (2, 1000, 750)],
        *[(2, 750, 750), (2, 750, 500)],
        *[(1, 500, 500), (1, 500, 250)],
        (1, 250, 250),  # a step that ends clean has nothing to correct
    ]
    assert evaluations("discrete_first") == [
        (2, 750, 1000),  # nothing is revealed between T and 3/4: no evaluation of its own
        *[(2, 750, 750), (1, 500, 750)],
        (1, 250, 500),
        *[(1, 250, 250), (0, 0, 250)],
    ]
    held = {"supplied": {"c.ids": PAIRS[:1]}}
    moving = {"x": [1, 0], "c": {"hold": [1, 0]}}
    assert evaluations("together", moving, "heun", **held)[2:4] == [(2, 750, 750), (2, 750, 500)]
    assert evaluations("discrete_first", moving, **held)[1] == (1, 500, 750)


def test_numbers_alone_are_as_ever_and_another_word_is_refused():
    oracle = words_and_a_number()
    data = oracle.draw(5)
    for solver in ("ddim", "heun", "dpmpp_2m"):
        options = {"num": 5, "supplied": {"c.ids": data["c.ids"]}, "solver": {"x": solver}}
        rows = [run(oracle, "x | c", interleave=row, **options)["x.v"] for row in ("together", "discrete_first")]
        assert torch.equal(*rows)
    with pytest.raises(SpecError, match="interleave is together or discrete_first, not 'discrete first'"):
        SamplingOptions(interleave="discrete first")


def test_its_cost_is_told():
    oracle = words_and_a_number()
    cost = {
        (spec, solver, interleave): SamplingOptions(solver={"x": solver}, interleave=interleave).evaluations_for(
            TimestepSpec.parse(spec, oracle.processes), oracle.processes
        )
        for spec in ("c, x", "x")
        for solver in ("ddim", "heun")
        for interleave in ("together", "discrete_first")
    }
    assert list(cost.values()) == [1, 2, 2, 3, 1, 1, 2, 2]
