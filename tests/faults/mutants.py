"""Mutants of our own code: each is a mistake that somebody could make, and a campaign must turn red on it.

A mutant is put in place in a process of its own, where faults of one campaign are injected until one is silent. It is
detected if one is; it is silent itself, if the campaign stays green.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults import files, kills, numbers, position, signals, training
from tests.faults.scoreboard import Fault, Outcome, Scoreboard
from unidiff_core.data import index
from unidiff_core.data.module import OrderedData
from unidiff_core.foundation import atomic
from unidiff_core.serialization import model_directory
from unidiff_core.training import accumulation, ema, finite, newest
from unidiff_core.training.checkpoint import ModelDirectory
from unidiff_core.training.ema import EMA
from unidiff_core.training.signals import Signals

TRIES = 60
"""Faults that are injected into a mutant at most."""


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Attributes:
        change: puts it into this process.
        campaign: module of this folder that must see it.
        kinds: begin the names of the kinds of faults that are injected.
    """

    change: Callable[[], None]
    campaign: Any
    kinds: tuple[str, ...]


def _patch(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return partial(setattr, owner, name, value)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _no_number_is_bad() -> None:
    finite.are_finite = lambda tensors: True  # type: ignore[assignment]
    finite.SkipNonFinite.on_before_backward = _nothing  # type: ignore[method-assign]


def _average_bad_steps() -> None:
    """A step that was skipped goes into the average, and what made it bad with it."""
    follow = EMA.on_train_batch_end

    def on_train_batch_end(self: EMA, trainer: Any, module: Any, *arguments: Any) -> None:
        rows = [row for row in trainer.callbacks if isinstance(row, finite.SkipNonFinite)]
        skipped = [row for row in rows if row.skipped and trainer.global_step != self._step]
        for row in skipped:
            row.skipped = False
        follow(self, trainer, module, *arguments)
        for row in skipped:
            row.skipped = True
            next(iter(self.average.values())).view(-1)[0] = torch.nan

    EMA.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]
    ema.check_finite = _nothing  # type: ignore[attr-defined]


def _save_in_the_handler() -> None:
    listen = Signals._listen

    def listen_and_remember(self: Any, trainer: Any) -> None:
        self._trainer = trainer
        listen(self, trainer)

    def note(self: Any, number: int, frame: Any) -> None:
        self._number = number
        self._act(self._trainer)

    Signals._listen, Signals._note = listen_and_remember, note  # type: ignore[method-assign]


MUTANTS: dict[str, Mutant] = {
    "drop the fsync": Mutant(_patch(atomic, "sync", _nothing), files, ("power cut",)),
    "skip a checkpoint's hash": Mutant(
        _patch(newest, "is_sealed", lambda path: True), files, ("bit flip of last.ckpt",)
    ),
    "skip a model's hash": Mutant(
        _patch(model_directory, "_sums", lambda path: None), files, ("bit flip of model", "bit flip of ema")
    ),
    "skip a sample's checksum": Mutant(_patch(index.ShardIndex, "_check", _nothing), files, ("bit flip of latents",)),
    "save inside the signal's handler": Mutant(
        _save_in_the_handler, signals, ("SIGTERM between two", "SIGINT between two")
    ),
    "forget the data position": Mutant(_patch(OrderedData, "_present_step", lambda self: 0), position, ("goes on",)),
    "forget the place in a step": Mutant(_patch(accumulation, "to_whole_steps", _nothing), position, ("goes on",)),
    "let NaN into the weights": Mutant(_no_number_is_bad, numbers, ("NaN", "infinity")),
    "let NaN into the average": Mutant(_average_bad_steps, numbers, ("NaN", "infinity")),
    "leave the directory behind": Mutant(
        _patch(ModelDirectory, "on_fit_end", _nothing), kills, ("killed while the directory",)
    ),
}


def faults(count: int, seed: int) -> Iterator[Fault]:
    """Each mutant in turn, with other faults each time."""
    for number, name in zip(range(count), itertools.cycle(MUTANTS)):
        yield Fault("mutant of our own code", name, partial(_inject, name, seed + number // len(MUTANTS)))


def _inject(name: str, seed: int, folder: Path) -> Outcome:
    training.uninterrupted()  # the references are of the code as it is
    files.trained()
    kills.census()
    process = os.fork()
    if process == 0:
        code = 2
        try:
            mutant = MUTANTS[name]
            chosen = (row for row in mutant.campaign.faults(50 * TRIES, seed) if row.kind.startswith(mutant.kinds))
            mutant.change()
            code = 0 if is_red(itertools.islice(chosen, TRIES), folder) else 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code not in (0, 1):
        raise RuntimeError(f"the mutant {name!r} ended with {code}")
    return Outcome.SILENT if code else Outcome.DETECTED


def is_red(chosen: Iterable[Fault], folder: Path) -> bool:
    """Inject until one is silent: whether one is."""
    board = Scoreboard()
    for number, fault in enumerate(chosen):
        board.run([fault], folder / str(number))
        if board.silent:
            return True
    return False
