"""The exact mixture against a loop over cells that was written apart from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T
from unidiff_core.process.cold.degradation import BlockMean, Blur
from unidiff_core.process.cold.process import Cold
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import Flow, ScaledLinear
from unidiff_core.process.masked.process import Masked
from unidiff_core.sampling.loop import sample
from unidiff_core.testing import ExactMixture, GaussianOracle

DOUBLE = torch.float64
SHAPES = {"w.ids": (2,), "p.ids": (1, 2), "a.v": (1, 2, 2), "b.v": (2,), "c.v": (1, 4)}


def everything(**changes):
    """Two modalities of symbols, three of numbers: each with a process of its own."""
    processes = {
        "w": Masked(3),
        "p": Masked(2),
        "a": Cold(Blur(1.5)),
        "b": Gaussian(ScaledLinear(), "noise"),
        "c": Gaussian(Flow(), "velocity"),
    }
    return ExactMixture.random(processes | changes, SHAPES, seed=1)


@dataclass(frozen=True)
class Constant(Draws):
    """Draws that are all one number."""

    value: float = 0.0

    def _draw(self, kind, shape):
        return torch.full((1, *shape), self.value)


def moved(process, value, t, noise):
    """A clean value of numbers at a time, with this noise everywhere."""
    draws = Constant(0, "", "", 0, torch.arange(1), value=noise)
    return process.corrupt(value[None], torch.tensor([t], dtype=DOUBLE), draws).corrupted[0]


def by_hand(mixture, latents, times, i, left_out=()):
    """Clean estimates of sample i: cell by cell, from what `corrupt` does to a value."""
    numbers = [key for key in mixture.rows if key not in left_out]
    every = list(mixture.rows)
    t = {name: row[i].item() for name, row in times.items()}
    size = {key: math.prod(mixture.shapes[key]) for key in every}
    maps, spread = [], []
    for key in numbers:
        process, shape = mixture.processes[key[0]], mixture.shapes[key]
        units = torch.eye(size[key], dtype=DOUBLE).reshape(-1, *shape)
        maps.append(np.stack([moved(process, unit, t[key[0]], 0.0).flatten().numpy() for unit in units], axis=1))
        spread += moved(process, torch.zeros(shape, dtype=DOUBLE), t[key[0]], 1.0).flatten().tolist()
    where = [k for key in numbers for k in range(mixture.rows[key].start, mixture.rows[key].stop)]
    a = np.zeros((len(where), len(where)))
    first = 0
    for block in maps:
        a[first : first + len(block), first : first + len(block)] = block
        first += len(block)
    x = np.concatenate([latents[key][i].flatten().numpy() for key in numbers])
    basis = mixture._basis.numpy()
    weights, estimates = [], []
    for c in range(len(mixture.log_weights)):
        weight = mixture.log_weights[c].item()
        for key, ids in mixture.symbols.items():
            for state, symbol in zip(latents[key][i].flatten().tolist(), ids[c].flatten().tolist(), strict=True):
                if state not in (symbol, mixture.processes[key[0]].vocabulary):
                    weight = -math.inf
        mean = mixture._means[c].numpy() @ basis.T
        full = basis @ mixture._spread[c].numpy() @ basis.T
        noisy = a @ full[np.ix_(where, where)] @ a.T + np.diag(np.square(spread))
        residual = x - a @ mean[where]
        inverse = np.linalg.inv(noisy)
        weights.append(weight - 0.5 * residual @ inverse @ residual - 0.5 * np.linalg.slogdet(noisy)[1])
        estimates.append(mean + full[:, where] @ a.T @ inverse @ residual)
    likely = np.exp(np.array(weights) - max(weights))
    likely /= likely.sum()
    mean = sum(w * row for w, row in zip(likely, estimates, strict=True))
    out = {key: mean[mixture.rows[key]].reshape(mixture.shapes[key]) for key in every}
    for key, ids in mixture.symbols.items():
        table = np.zeros((*mixture.shapes[key], mixture.processes[key[0]].vocabulary))
        for c, w in enumerate(likely):
            for place in np.ndindex(*mixture.shapes[key]):
                table[(*place, ids[c][place].item())] += w
        out[key] = table
    return out


def states(mixture, times, num):
    """Exact samples, corrupted."""
    return {
        key: mixture.processes[key[0]]
        .corrupt(value, times[key[0]], Draws(0, "noise", key, 0, torch.arange(num)))
        .corrupted
        for key, value in mixture.draw(num, seed=2).items()
    }


def some_times(num, same):
    t = torch.rand(5, 1 if same else num, generator=torch.Generator().manual_seed(3), dtype=DOUBLE) * T
    return dict(zip("wpabc", t.expand(5, num), strict=True))


@pytest.mark.parametrize("same", [True, False], ids=["one time", "a time each"])
def test_estimates_equal_a_loop_over_cells(same):
    mixture, num = everything(), 6
    times = some_times(num, same)
    if not same:  # clean and pure noise are no special cases
        times["w"][0], times["a"][1], times["c"][2], times["b"][3], times["p"][4] = 0, 0, T, T, T
    latents = states(mixture, times, num)
    got = mixture(latents, times)
    assert list(got) == list(SHAPES)
    for i in range(num):
        want = by_hand(mixture, latents, times, i)
        for key, value in got.items():
            found = value[i].exp() if key in mixture.symbols else value[i]
            assert np.abs(found.numpy() - want[key]).max() < 1e-12, key
    assert (mixture.num_evaluated, mixture.num_off_support) == (num, 0)


def test_what_is_dropped_is_marginalised():
    mixture, num = everything(), 4
    times = some_times(num, same=False)
    latents = states(mixture, times, num)
    kept = {key: value for key, value in latents.items() if key[0] in "wb"}
    got = mixture(kept, {name: times[name] for name in "wb"})
    assert set(got) == {"w.ids", "b.v"}
    hidden = latents | {"p.ids": torch.full_like(latents["p.ids"], 2)}
    for i in range(num):
        want = by_hand(mixture, hidden, times, i, left_out=("a.v", "c.v"))
        assert np.abs(got["w.ids"][i].exp().numpy() - want["w.ids"]).max() < 1e-12
        assert np.abs(got["b.v"][i].numpy() - want["b.v"]).max() < 1e-12


def test_a_blur_without_noise_is_undone_where_anything_is_left():
    """What survives of a coordinate, however little, is known; what does not is a conditional."""
    mixture = everything(a=Cold(Blur(3.0), noise=0.0, fades=False))
    times = some_times(3, same=True)
    for t in (0.0, 400.0):
        times["a"] = torch.full((3,), t, dtype=DOUBLE)
        latents = states(mixture, times, 3)
        assert (mixture(latents, times)["a.v"] - mixture.draw(3, seed=2)["a.v"]).abs().max() < 1e-6
    gone = everything(a=Cold(BlockMean(1), noise=0.0, fades=False))
    times["a"] = torch.full((3,), float(T), dtype=DOUBLE)
    latents = states(gone, times, 3)
    estimate = gone(latents, times)["a.v"]
    assert torch.allclose(estimate.mean((2, 3)), latents["a.v"].mean((2, 3)), atol=1e-10)
    assert estimate.flatten(1).std(1).min() > 0.01


def test_one_cell_is_the_joint_gaussian_oracle():
    oracle = GaussianOracle.random({"a.v": (2,), "b.v": (1, 2)}, schedule=ScaledLinear())
    means = {key: oracle.mean[None, rows].reshape(1, *oracle.shapes[key]) for key, rows in oracle.rows.items()}
    mixture = ExactMixture(oracle.processes, {}, torch.zeros(1), means, oracle.covariance)
    times = {"a": torch.full((5,), 300.0), "b": torch.full((5,), 900.0)}
    latents = oracle.draw(5)
    for key, value in mixture(latents, times).items():
        assert (value - oracle(latents, times)[key]).abs().max() < 1e-12
    options = {"num": 4, "steps": 5, "guidance": 1.0, "dtype": DOUBLE, "shapes": oracle.shapes}
    given = {"b.v": oracle.draw(4)["b.v"]}
    rows = [
        sample(row, "a | b", processes=row.processes, supplied=given, **options)["a.v"] for row in (oracle, mixture)
    ]
    assert torch.allclose(*rows, atol=1e-10)
    mean, covariance = oracle.conditional(["a.v"], given, {"b": 200.0})
    known = mixture.posterior(given, {"b": torch.full((4,), 200.0)})
    assert torch.allclose(known.means[:, 0, :2], mean, atol=1e-12)
    assert torch.allclose(known.covariances[0, 0, :2, :2], covariance, atol=1e-12)


@pytest.mark.parametrize("prediction", ["noise", "velocity", "clean", "flow"])
def test_predictions_imply_the_estimates(prediction):
    process = Gaussian(ScaledLinear(), prediction)
    mixture, num = everything(b=process), 40
    times = some_times(num, same=False)
    latents = states(mixture, times, num)
    said, estimates = mixture.network(latents, times, {}), mixture(latents, times)
    assert said["p.ids"].shape == (num, 2, 1, 2)
    for key, value in said.items():
        clean = mixture.processes[key[0]].clean(latents[key], value, times[key[0]])
        assert torch.allclose(clean, estimates[key], atol=1e-10), key
    ends = torch.zeros(3, dtype=DOUBLE)
    x = torch.randn(3, 2, dtype=DOUBLE)
    expected = {"noise": 0 * x, "velocity": 0 * x, "clean": x, "flow": -x}[prediction]
    assert torch.equal(process.prediction_of(x, x, ends), expected)


def test_off_the_support_symbols_are_disregarded_and_it_is_counted():
    words = torch.tensor([[0, 0], [1, 1], [2, 2]])
    mixture = ExactMixture({"w": Masked(3)}, {"w.ids": words}, torch.tensor([0.5, 0.3, 0.2]).log())
    states = {"w.ids": torch.tensor([[0, 1], [3, 1], [3, 3]])}
    got = mixture(states, {"w": torch.zeros(3)})["w.ids"]
    assert torch.allclose(got[0].exp(), torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE).expand(2, 3))
    assert got[1].exp().tolist() == [[0, 1, 0]] * 2 and got.isfinite().all()
    assert (mixture.num_evaluated, mixture.num_off_support) == (3, 1)
    assert mixture.entropy == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.3, 0.2)))


def test_samples_are_of_the_mixture():
    mixture, num = everything(), 20000
    drawn = mixture.draw(num)
    known = mixture.posterior({}, {})
    mean = (known.weights[0][:, None] * known.means[0]).sum(0)
    got = torch.cat([drawn[key].flatten(1) for key in mixture.rows], dim=1)
    assert ((got.mean(0) - mean).abs() < 4.5 * got.std(0) / num**0.5).all()
    cell = torch.stack([(drawn["w.ids"] == row).all(1) for row in mixture.symbols["w.ids"].unique(dim=0)])
    share = torch.stack(
        [
            known.weights[0][(mixture.symbols["w.ids"] == row).all(1)].sum()
            for row in mixture.symbols["w.ids"].unique(dim=0)
        ]
    )
    assert ((cell.double().mean(1) - share).abs() < 4.5 * (share / num).sqrt()).all()


REFUSED = {
    "'w.ids' has 3 rows for 2 cells": lambda: ExactMixture(
        {"w": Masked(3)}, {"w.ids": torch.zeros(3, 2, dtype=torch.int64)}, torch.zeros(2)
    ),
    r"a covariance of 2 numbers in 1 cells is not \(1, 1\)": lambda: ExactMixture(
        {"a": Gaussian()}, {}, torch.zeros(1), {"a.v": torch.zeros(1, 2)}, torch.eye(1)
    ),
    "positive definite: give what is certain a small variance": lambda: ExactMixture(
        {"a": Gaussian()}, {}, torch.zeros(1), {"a.v": torch.zeros(1, 2)}, torch.zeros(2, 2)
    ),
    "combinations of symbols are too many": lambda: ExactMixture.random({"w": Masked(10)}, {"w.ids": (6,)}),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_does_not_fit_is_refused(says):
    with pytest.raises(ValueError, match=says):
        REFUSED[says]()
