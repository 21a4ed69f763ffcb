"""Several processes: two, three and four of them; one that is slow, one that dies, some that see a folder as it was.

Survived, if in the end the result is that of one process that nothing happened to, within the rounding of float64. A
sum that is divided by a wrong number shows with three or four. All are short trainings, of real processes.
"""

from __future__ import annotations

import builtins
import functools
import io
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.faults import signals, training
from tests.faults.position import ROUNDING
from tests.faults.scoreboard import Fault, Outcome
from unidiff_core import UniDiffuser

BATCH, STEPS, SAVED = 24, 5, 3
"""Samples of a step, steps, and after how many one process leaves a checkpoint for several to go on from."""
SIZES = (20, 20)
"""Samples of the shards."""
PARTS = 2
"""Micro-batches of a step on each of several processes."""
WORLDS, STRATEGIES = (2, 3, 4), ("ddp", "fsdp2")
KINDS = (
    "several processes", "one is slow", "one dies", "the run folder lags", "nothing of the run folder is seen",
    "the latents lag",
)  # fmt: skip
LAG, SLOW = 1.0, 1.0
"""Seconds."""


@dataclass(frozen=True)
class Run:
    """Several processes, one of which something happens to, at a step."""

    world: int
    strategy: str
    victim: int
    step: int
    moment: str

    @property
    def options(self) -> list[str]:
        """Of the command line."""
        return [f"--trainer.strategy={self.strategy}", *_shared(BATCH // self.world // PARTS, PARTS)]


def faults(count: int, seed: int) -> Iterator[Fault]:
    """`count` faults, the kinds by turns, and within each of them numbers of processes and strategies."""
    rng = random.Random(seed)
    for kind, number in training.turns(count, KINDS):
        world, strategy = WORLDS[(number + 1) % len(WORLDS)], STRATEGIES[number // len(WORLDS) % len(STRATEGIES)]
        lags = "latents" in kind or "folder" in kind
        run = Run(
            world, strategy, rng.randrange(lags, world), rng.randrange(1, STEPS), rng.choice(list(signals.MOMENTS))
        )
        yield Fault(kind, str(run), partial(_inject, kind, run))


def _inject(kind: str, run: Run, folder: Path) -> Outcome:
    training.prepare(folder, SIZES)
    before: Callable[[int], None] = lambda rank: _in_float64()  # noqa: E731
    if kind == "one is slow":
        before = partial(_of_one, run.victim, partial(signals.MOMENTS[run.moment], _Once(SLOW), run.step))
    elif kind == "one dies":
        _let_one_die(run, folder)
    elif kind == "the latents lag":
        training.write_latents(folder / "then", SIZES[:1])
        before = partial(_of_others, Lag(folder / "latents", folder / "then").begin)
    elif kind != "several processes":
        _train_alone(folder, 1)
        if kind == "the run folder lags":
            shutil.copytree(folder / "run", folder / "then")
        else:
            (folder / "then").mkdir()
        _train_alone(folder, SAVED)
        before = partial(_of_others, Lag(folder / "run", folder / "then").begin)
    _train(run, folder, before)
    return Outcome.SURVIVED if difference(training.result(folder), alone()) <= ROUNDING else Outcome.SILENT


def _shared(micro: int, parts: int) -> list[str]:
    """Options for a number of samples and of micro-batches; a validation after every second step."""
    sizes = [f"--data.batch_size={BATCH}", f"--data.micro_batch_size={micro}"]
    return [*sizes, f"--trainer.val_check_interval={2 * parts}", f"--trainer.max_steps={STEPS}"]


def _train_alone(folder: Path, steps: int) -> None:
    training.train(folder, *_shared(BATCH, 1), f"--trainer.max_steps={steps}", before=_in_float64)


@functools.cache
def alone() -> dict[str, Tensor]:
    """What one process leaves that nothing happens to."""
    with tempfile.TemporaryDirectory() as name:
        training.prepare(Path(name), SIZES)
        _train_alone(Path(name), STEPS)
        return training.result(Path(name))


def _train(run: Run, folder: Path, before: Callable[[int], None]) -> None:
    training.await_all(training.together(folder, run.world, *run.options, before=before), str(run))


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest of any weight or average; infinite if there are others. Strategies name moments in their own ways."""
    kinds = ("model/", "ema/", "weights/", "average/", "step/")
    one, two = (
        {key: value.double() for key, value in row.items() if key.startswith(kinds)} for row in (found, expected)
    )
    if one.keys() != two.keys():
        return float("inf")
    return max((one[key] - value).abs().max().item() for key, value in two.items())


def _in_float64() -> None:
    torch.set_default_dtype(torch.float64)


def _of_one(victim: int, change: Callable[[], None], rank: int) -> None:
    _in_float64()
    if rank == victim:
        change()


def _of_others(change: Callable[[], None], rank: int) -> None:
    _in_float64()
    if rank:
        change()


class _Once:
    """Sleeps, the first time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> None:
        time.sleep(self.seconds)
        self.seconds = 0.0


def _let_one_die(run: Run, folder: Path) -> None:
    """The others say so and stop; what they leave is gone on from.

    Raises:
        RuntimeError: if they do not.
    """

    def change() -> None:
        kill = partial(os.kill, os.getpid(), signal.SIGKILL)
        signals._around(UniDiffuser, "training_step", lambda model, batch, *_: batch.step == run.step, kill)

    children = training.together(folder, run.world, *run.options, before=partial(_of_one, run.victim, change))
    for rank, child in enumerate(children):
        code, said = child.wait(60), " ".join(child.said.split())
        if code != (-signal.SIGKILL if rank == run.victim else 2):
            raise RuntimeError(f"{run}: process {rank} ended with {code}: {said[-2000:]}")
        if code == 2 and f"of {run.world} stops after step {run.step}: another one died" not in said:
            raise RuntimeError(f"{run}: process {rank} does not say why it ends: {said[-2000:]}")


class Lag:
    """Shows a process a folder as it was, until it has been in a group of processes for some time.

    Args:
        folder: that is shared.
        then: what was in it.
    """

    def __init__(self, folder: Path, then: Path) -> None:
        self.folder, self.then = str(folder.absolute()), str(then.absolute())
        self._over: float | None = None

    def begin(self) -> None:
        """In this process, for all that reads by Python's functions."""
        for owner, name in [(builtins, "open"), (io, "open")] + [
            (os, name) for name in ("stat", "lstat", "open", "listdir", "scandir")
        ]:
            setattr(owner, name, partial(self._call, getattr(owner, name)))

    def _call(self, call: Callable[..., Any], path: Any = ".", *arguments: Any, **options: Any) -> Any:
        return call(self._place(path), *arguments, **options)

    def _place(self, path: Any) -> Any:
        if not isinstance(path, (str, os.PathLike)):
            return path
        whole = os.path.join(os.getcwd(), os.fspath(path))  # noqa: PTH109, PTH118
        is_in = isinstance(whole, str) and (whole == self.folder or whole.startswith(self.folder + os.sep))
        return self.then + whole[len(self.folder) :] if is_in and self._lags() else path

    def _lags(self) -> bool:
        if self._over is None:
            if not torch.distributed.is_initialized():
                return True
            self._over = time.monotonic() + LAG
        return time.monotonic() < self._over
