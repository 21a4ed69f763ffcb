"""Numbers that go bad: NaN and infinity in a sample, the loss, one gradient, on one process alone, while accumulating.

Each run trains a tiny model; at some step of it a number goes bad. Survived is what the step before left, bit for bit:
weights, average and moments, on every process; and the run says which samples it was.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tests.core.group import in_group
from tests.core.tiny import Pairs, make, trainer, weights
from tests.faults.scoreboard import Fault, Outcome
from unidiff_core.data.module import Placed
from unidiff_core.data.order import GlobalOrder
from unidiff_core.training.ema import EMA

STEPS = 5
BATCH = 16
BAD = (float("nan"), float("inf"), -float("inf"))
PLACES = ("sample", "loss", "gradient")


class Watch(pl.Callback):
    """Copies of all that a step may change, before the first step and after each."""

    def __init__(self, ema: EMA) -> None:
        self.ema, self.seen = ema, list[list[torch.Tensor]]()

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        moments = [value.clone() for row in trainer.optimizers[0].state.values() for value in row.values()]
        average = [value.clone() for value in self.ema.average.values()]
        self.seen.append([weights(module).clone(), torch.tensor(self.ema.num_updates), *average, *moments])


class Said(logging.Handler):
    """What the training logs."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def faults(count: int, seed: int) -> Iterator[Fault]:
    """`count` faults; every eighth is on one of two processes."""
    rng = random.Random(seed)
    for number in range(count):
        place, bad, step = PLACES[number % 3], rng.choice(BAD), rng.randrange(1, STEPS - 1)
        parts = rng.choice((1, 2, 4))
        precision = rng.choice(("32-true", "bf16-mixed"))
        world = 2 if number % 8 == 7 else 1
        where = f"{bad} in a {place} at step {step}, {parts} micro-batches, {precision}, {world} processes"
        kind = f"{'NaN' if bad != bad else 'infinity'} in a {place}" + " of one process" * (world > 1)
        run = partial(_run, place=place, bad=bad, step=step, parts=parts, precision=precision, at=rng.randrange(parts))
        yield Fault(kind, where, partial(_inject, run=run, world=world))


def _inject(folder: Path, run: Any, world: int) -> Outcome:
    if world == 1:
        return Outcome.DETECTED if run(folder, 0, 1) else Outcome.SILENT
    return Outcome.DETECTED if all(in_group(world, lambda rank: run(folder, rank, world))) else Outcome.SILENT


def _run(
    folder: Path, rank: int, world: int, *, place: str, bad: float, step: int, parts: int, precision: str, at: int
) -> bool:
    """Whether the bad step changed nothing, and was told with its samples by the process that they are on.

    What goes bad is on the last process.
    """
    micro = BATCH // parts // world
    order = GlobalOrder(64, BATCH, micro_batch_size=micro, seed=0, rank=rank, world=world, first_step=0)
    is_bad = rank == world - 1
    rows = [row.rows for row, _ in zip(order, range(STEPS * parts), strict=False)]
    suspects = rows[step * parts + at]
    data, model, ema = Pairs(), make(), EMA(0.9)
    victim = int(suspects[(step + at) % len(suspects)])
    if is_bad and place == "sample":
        data = _BadOnce(data, victim, bad, step)
    elif is_bad and place == "loss":
        _spoil_loss(model, step, at, bad)
    elif is_bad:
        parameter = next(model.parameters())
        parameter.register_hook(lambda grad: grad + bad if model.trainer.global_step == step else grad)
    watch, said = Watch(ema), Said()
    logger = logging.getLogger("unidiff_core.training.finite")
    logger.addHandler(said)
    options: dict[str, Any] = {"strategy": "ddp", "devices": world} if world > 1 else {}
    run = trainer(
        folder, STEPS, [ema, watch], accumulate_grad_batches=parts, precision=precision, gradient_clip_val=1.0,
        use_distributed_sampler=False, **options,
    )  # fmt: skip
    try:
        run.fit(model, DataLoader(Placed(data), sampler=order, batch_size=None))
    finally:
        logger.removeHandler(said)
    seen = watch.seen
    held = all(torch.equal(*pair) for pair in zip(seen[step], seen[step - 1], strict=True))
    moved = all(not torch.equal(seen[i][0], seen[i - 1][0]) for i in range(1, STEPS) if i != step)
    finite = all(bool(value.isfinite().all()) for row in seen for value in row)
    told = [text for text in said.texts if text.startswith(f"step {step} skipped on all processes")]
    wanted = [victim] if place == "sample" else suspects.tolist()
    names = {name.strip() for text in told for name in text.rpartition("samples ")[2].split(",")}
    named = not is_bad or {str(row) for row in wanted} <= names
    return held and moved and finite and len(told) == 1 and named


class _BadOnce(torch.utils.data.Dataset):
    """One number of one sample is bad, at one step."""

    def __init__(self, samples: Pairs, row: int, bad: float, step: int) -> None:
        self.samples, self.row, self.bad, self.step = samples, row, bad, step

    def __getitem__(self, place: Any) -> Any:
        batch = self.samples[place]
        if batch.step == self.step:
            batch.stored["a.v"][place.rows == self.row, 1] = self.bad
        return batch


def _spoil_loss(model: Any, step: int, at: int, bad: float) -> None:
    train, seen = type(model).training_step, [0, -1]

    def training_step(batch: Any) -> Any:
        seen[:] = [batch.step, seen[1] + 1 if seen[0] == batch.step else 0]
        loss = train(model, batch)
        return loss + bad if tuple(seen) == (step, at) else loss

    model.training_step = training_step
