"""What several processes decide by files that they share.

What one process has written into a shared folder, another may see later, or as it was before: NFS keeps what it knows
of a folder for up to a minute. So the first process alone decides by what is there, and the others are told, and wait
until they see it as well.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

T = TypeVar("T")
PATIENCE = 180.0
"""Seconds that a process waits until it sees what the first one sees: three times what NFS keeps at most."""
PAUSE = 0.1
"""Seconds between two looks."""
END = 2**16
"""Bytes at a file's end that tell its versions apart."""
_LOG = logging.getLogger(__name__)


def assemble(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Have all processes of a trainer run, and able to tell each other something, before it begins.

    Lightning does so in the midst of `fit`, where it has long been given a checkpoint. Strategies that fork or spawn do
    it then alone: until then there is one process.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1 or isinstance(strategy.launcher, _MultiProcessingLauncher):
        return
    strategy.connect(module)
    if strategy.launcher:
        strategy.launcher.launch(strategy.setup_environment)
    else:
        strategy.setup_environment()


def decided(trainer: pl.Trainer, decide: Callable[[], T]) -> T:
    """What the first process decides, on all of them. All call it together, and only the first one is asked.

    Raises:
        ValueError: on all processes, if there is nothing to decide on the first; OSError on that.
    """
    if trainer.world_size == 1:
        return decide()
    told: tuple[Any, str | None] = (None, None)
    wrong: Exception | None = None
    if trainer.is_global_zero:
        try:
            told = (decide(), None)
        except (ValueError, OSError) as error:
            wrong, told = error, (None, str(error))
    value, why = trainer.strategy.broadcast(told)
    if wrong or why is not None:
        raise wrong or ValueError(why)
    return value


def seen_by_all(trainer: pl.Trainer, look: Callable[[], T], what: str) -> T:
    """What the first process sees, as soon as this one sees it too. All call it together.

    Args:
        trainer: of the processes.
        look: what is seen, to be compared; a ValueError or an OSError is nothing that is seen.
        what: it is, for messages.

    Raises:
        ValueError: on all processes, if the first sees nothing; on one that sees something else for `PATIENCE`.
    """
    there = decided(trainer, look)
    began, is_told = time.monotonic(), False
    while not trainer.is_global_zero:
        with suppress(ValueError, OSError):
            if look() == there:
                break
        waited = time.monotonic() - began
        if waited > PATIENCE:
            raise ValueError(
                f"process {trainer.global_rank} does not see {what} as process 0 does, after {waited:.0f} s; do all "
                "processes have the same folders?"
            )
        if waited > 5 and not is_told:
            is_told = True
            _LOG.warning("process %d waits until it sees %s as process 0 does", trainer.global_rank, what)
        time.sleep(PAUSE)
    return there


def version(path: str | Path) -> str:
    """What tells a file's versions apart: its size and its end, where a checkpoint's seal is; of a folder, its names.

    Raises:
        OSError: if it is not there.
    """
    path = Path(path)
    names = {row.name for row in path.parent.iterdir()}  # makes a network file system look again
    if path.name not in names:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.is_dir():
        return " ".join(sorted(row.name for row in path.iterdir()))
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - END))
        return f"{size} {hashlib.sha256(stream.read()).hexdigest()}"


def everybodys(trainer: pl.Trainer, value: T) -> list[T]:
    """A small value of each process, in their order. All call it together."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
