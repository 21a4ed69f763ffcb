"""The learning rate: warm-up, cosine, and the plateau."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from unidiff_core.training.learning_rate import Plateau, Warmup


def make(**options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return optimizer, Warmup(optimizer, **options)


def rates(optimizer, schedule, steps):
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_rise_then_constant_or_cosine():
    assert rates(*make(steps=4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(*make(steps=2, decay_until=6), 7) == pytest.approx([0.5, 1, 1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


def test_a_cosine_ends_with_the_time_or_with_the_steps_whichever_is_first():
    optimizer, schedule = make(steps=1, decay_until=9, decay_in_time=True)
    schedule.time_gone = 0.5
    assert rates(optimizer, schedule, 3)[1:] == pytest.approx([0.5, 0.5])
    assert rates(optimizer, schedule, 6)[-1] == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 7 / 8))
    schedule.time_gone = 1.0
    assert rates(optimizer, schedule, 2)[-1] == 0
    other, resumed = make(steps=1, decay_in_time=True)
    resumed.load_state_dict(schedule.state_dict())
    assert rates(other, resumed, 2)[-1] == 0


def test_rate_falls_to_a_tenth_where_the_loss_stalls_and_stays_there_after_a_resume():
    optimizer, schedule = make(steps=1)
    plateau = Plateau(patience=2, threshold=0.01)
    trainer = SimpleNamespace(
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        callback_metrics={},
        lr_scheduler_configs=[SimpleNamespace(scheduler=schedule)],
    )
    seen = []
    for loss in [1.0, 0.9, 0.8995, 0.95, 0.7, 0.7, 0.7]:  # better by too little is not better
        trainer.callback_metrics["validation/loss"] = torch.tensor(loss)
        plateau.on_validation_end(trainer, None)
        seen.append(rates(optimizer, schedule, 2)[-1])
    assert seen == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])
    other, resumed = make(steps=1)
    resumed.load_state_dict(schedule.state_dict())
    assert rates(other, resumed, 2)[-1] == pytest.approx(0.01)
    again = Plateau(patience=2)
    again.load_state_dict(plateau.state_dict())
    assert (again.best, again.num_stalled) == (pytest.approx(0.7), 0)


def test_what_cannot_be_watched_is_named():
    trainer = SimpleNamespace(
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        callback_metrics={"train/loss": 1},
        lr_scheduler_configs=[],
    )
    with pytest.raises(ValueError, match=r"'validation/loss', but there are train/loss"):
        Plateau().on_validation_end(trainer, None)
    with pytest.raises(ValueError, match="factor=2"):
        Plateau(factor=2)
