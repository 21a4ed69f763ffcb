"""Where the data goes on: after a stop at any micro-batch, with other numbers of workers, processes, micro-batches.

Survived, if every sample of each epoch reached a step of the model exactly once, and the run is that of a training that
nothing happened to: to the bit with the same processes and micro-batches, otherwise within the rounding of float64.
"""

from __future__ import annotations

import functools
import json
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from tests.faults import training
from tests.faults.scoreboard import Fault, Outcome
from unidiff_core import UniDiffuser
from unidiff_core.foundation.batch import Batch

BATCH = training.BATCH
NUM_POSITIONS = 20
WORKERS = (0, 1, 2, 4)
PROCESSES = (1, 2)
EVEN = (training.NUM,)
UNEVEN = (0, 1, 7, 13, 100)
ROUNDING = 1e-9
"""Of float64, after the steps of a run. The table of errors is written with six digits, and not compared to them."""
STOP = "stop.ckpt"


@dataclass(frozen=True)
class Run:
    """By how many the work of a training is shared: nothing of it may change the run."""

    workers: int
    processes: int
    micro: int
    """Samples of a micro-batch."""

    @property
    def parts(self) -> int:
        """Micro-batches of a step on one process."""
        return BATCH // self.micro // self.processes

    @property
    def options(self) -> list[str]:
        """Of the command line, but for the number of processes."""
        return [f"--data.num_workers={self.workers}", f"--data.micro_batch_size={self.micro}"]

    def __str__(self) -> str:
        return f"{self.workers} workers, {self.processes} processes, micro-batches of {self.micro}"


def faults(count: int, seed: int) -> Iterator[Fault]:
    """`count` stops: numbers of workers and processes by turns, each at another of 20 positions.

    Every other one goes on as it was, every fourth has shards of uneven sizes.
    """
    rng = random.Random(seed)
    for number in range(count):
        workers, processes = WORKERS[number % 4], PROCESSES[number // 4 % 2]
        before = Run(workers, processes, rng.choice([1, 2, 4] + [8] * (processes == 1)))
        after = before
        if number % 2:
            processes = rng.choice(PROCESSES)
            after = Run(rng.choice(WORKERS), processes, rng.choice([1, 2, 4] + [8] * (processes == 1)))
        sizes = UNEVEN if number // 2 % 4 == 3 else EVEN
        place = ((7 * (number // 8) + 3 * (number % 8)) % NUM_POSITIONS + rng.random()) / NUM_POSITIONS
        kind = "goes on with others" if number % 2 else "goes on as it was"
        kind += ", uneven shards" * (sizes is UNEVEN)
        yield Fault(kind, f"{before}; at {place:.3f}; then {after}", partial(_stop, before, after, place, sizes))


class Watch(pl.Callback):
    """Notes which samples each step was made of, and ends a process after a micro-batch, with a checkpoint.

    Args:
        ledger: a file; all processes write lines to it.
        attempt: which call of the command this is.
        stop: number of micro-batches after which all ends.
    """

    def __init__(self, ledger: Path, attempt: int, stop: int | None) -> None:
        self.ledger, self.attempt, self.left = ledger, attempt, stop

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        self._batch = batch

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        keys = [trainer.datamodule.sample_name(int(row)).split()[1] for row in self._batch.rows]
        rows = [*zip(self._batch.index.tolist(), keys, strict=True)]
        line = json.dumps({"attempt": self.attempt, "step": self._batch.step, "rows": rows}) + "\n"
        descriptor = os.open(self.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        if self.left is None:
            return
        self.left -= 1
        if not self.left:
            trainer.save_checkpoint(self.ledger.parent / "run" / STOP)
            trainer.strategy.barrier()
            os._exit(0)


def _watched(watch: Watch, rank: int = 0) -> None:
    """In the child: train in float64, and watch."""
    torch.set_default_dtype(torch.float64)
    bring = UniDiffuser.configure_callbacks
    UniDiffuser.configure_callbacks = lambda self: [*bring(self), watch]  # type: ignore[method-assign]


def call(folder: Path, run: Run, attempt: int, *, stop: int | None = None, steps: int = training.STEPS) -> None:
    """Train with all of a run's processes.

    Raises:
        RuntimeError: if one fails.
        TimeoutError: if one does not end.
    """
    watched = partial(_watched, Watch(folder / "ledger", attempt, stop))
    options = [*run.options, f"--trainer.max_steps={steps}"]
    if run.processes == 1:
        children = [training.Child(folder, *options, before=watched)]
    else:
        children = training.together(folder, run.processes, *options, before=watched)
    training.await_all(children, str(run))


def _steps(sizes: tuple[int, ...]) -> int:
    """Enough for more than an epoch."""
    return max(training.STEPS, sum(sizes) // BATCH + 3)


@functools.cache
def uninterrupted(run: Run, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """What a training leaves that nothing happens to."""
    with tempfile.TemporaryDirectory() as name:
        training.prepare(Path(name), sizes)
        call(Path(name), run, 0, steps=_steps(sizes))
        return training.result(Path(name))


def _stop(before: Run, after: Run, place: float, sizes: tuple[int, ...], folder: Path) -> Outcome:
    training.prepare(folder, sizes)
    steps = _steps(sizes)
    stop = 1 + int(place * (steps * before.parts - 1))
    call(folder, before, 0, stop=stop, steps=steps)
    call(folder, after, 1, steps=steps)
    if not each_once(folder / "ledger", steps, sum(sizes)):
        return Outcome.SILENT
    same_sums = (before.processes, before.micro) == (after.processes, after.micro)
    expected = uninterrupted(replace(before, workers=0), sizes) if same_sums else uninterrupted(Run(0, 1, BATCH), sizes)
    found = training.result(folder)
    if same_sums:
        return Outcome.SURVIVED if training.same(found, expected) else Outcome.SILENT
    is_close = found.keys() == expected.keys() and all(
        torch.allclose(found[name].double(), value.double(), rtol=0, atol=ROUNDING)
        for name, value in expected.items()
        if not name.startswith("clean_std")
    )
    return Outcome.SURVIVED if is_close else Outcome.SILENT


def each_once(ledger: Path, steps: int, size: int) -> bool:
    """Whether every step was made of a whole global batch, and every sample of each epoch was in one of them once.

    A step that was done in part before the stop is done again, as a whole.
    """
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    uses: list[str] = []
    for step in range(steps):
        own = [line for line in lines if line["step"] == step]
        attempt = max((line["attempt"] for line in own), default=None)
        rows = sorted(tuple(row) for line in own if line["attempt"] == attempt for row in line["rows"])
        if [index for index, _ in rows] != [*range(BATCH)]:
            return False
        uses += [key for _, key in rows]
    epochs = [uses[start : start + size] for start in range(0, len(uses), size)]
    return all(len({*epoch}) == len(epoch) for epoch in epochs)
