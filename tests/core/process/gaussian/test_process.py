from __future__ import annotations

import itertools

import pytest
import torch

from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.stream import Stream
from unidiff_core.foundation.time import T
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import Flow, ScaledLinear

DOUBLE = torch.float64


def test_scaled_linear_is_stable_diffusions():
    schedule = ScaledLinear()
    alpha_bar = schedule.alpha(torch.tensor([0, 1, 500, 1000], dtype=DOUBLE)).square()
    assert torch.allclose(alpha_bar, torch.tensor([1, 0.99915, 0.27767, 0.0046601], dtype=DOUBLE), atol=5e-6)
    t = torch.linspace(0, T, 777, dtype=DOUBLE)
    assert torch.allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))
    assert not schedule.forgets and Flow().forgets


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        pair
        for pair in itertools.product([Flow(), ScaledLinear()], ["noise", "velocity", "clean", "flow"])
        if not (isinstance(pair[0], Flow) and pair[1] == "noise")
    ],
)
def test_the_target_gives_the_clean_value_back(schedule, prediction):
    process = Gaussian(schedule, prediction)
    clean = torch.randn(50, 3, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, T, 50, dtype=DOUBLE)
    draws = Draws(0, "test", "a.v", 0, torch.arange(50))
    corruption = process.corrupt(clean, t, draws)
    noise = draws.normal((3, 4)).double()
    alpha, sigma = (row.reshape(-1, 1, 1) for row in (schedule.alpha(t), schedule.sigma(t)))
    assert torch.equal(corruption.corrupted, alpha * clean + sigma * noise)
    assert torch.equal(corruption.corrupted[0], clean[0])
    assert torch.allclose(process.clean(corruption.corrupted, corruption.target, t), clean, atol=1e-9)


def test_noise_prediction_is_refused_where_nothing_is_left_at_the_end():
    with pytest.raises(ValueError, match="predict flow, velocity or clean"):
        Gaussian(Flow(), "noise")
    with pytest.raises(ValueError, match="unknown prediction 'x'; known: noise"):
        Gaussian(Flow(), "x")


def test_symbols_are_refused():
    with pytest.raises(ValueError, match=r"5 of 9 symbols is of symbols: give the modality a process for symbols"):
        Gaussian().seen(Stream.symbols(5, vocabulary=9))
