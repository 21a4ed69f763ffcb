"""SIGKILL at random points of real trainings; the command is called again, and nothing may be different in the end.

Where a training can be killed is found by watching one: each call of one of its `POINTS` (a file that is opened, synced
or renamed, a forward pass, an optimizer's step, …) is one place, and named after what it belongs to. A child then kills
itself at the n-th call of a place; at `any time` its parent does it.
"""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tests.faults import training
from tests.faults.scoreboard import Fault, Outcome
from unidiff_core import UniDiffuser
from unidiff_core.serialization.model_directory import step_of
from unidiff_core.training.ema import EMA

KINDS = ("in a step", "in mid-save", "in mid-rename", "in mid-validation", "while the directory is written", "any time")
PARTS = ("config", "model", "ema", "clean_std")
"""Stems of the model directory's files."""


def faults(count: int, seed: int) -> Iterator[Fault]:
    """`count` kills, each kind in turn; every third run is killed twice."""
    rng = random.Random(seed)
    for kind, number in training.turns(count, KINDS):
        shares = [rng.random() for _ in range(2 if number % 3 == 2 else 1)]
        where = " and ".join(f"{share:.3f}" for share in shares)
        yield Fault(f"killed {kind}", f"at {where} of all such places", partial(_kill, kind, shares))


class Places:
    """Counts the places at which a training may be killed, and kills it at one.

    Args:
        reached: called at each place with its kind.
    """

    def __init__(self, reached: Callable[[str], None]) -> None:
        self.reached = reached

    def watch(self) -> None:
        """Watch this process from now on."""
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, partial(getattr(self, f"_{name}"), getattr(os, name)))
        Path.open = self._opening(Path.open)  # type: ignore[method-assign]
        for cls, name, kind in (
            (UniDiffuser, "training_step", "in a step"),
            (torch.Tensor, "backward", "in a step"),
            (torch.optim.AdamW, "step", "in a step"),
            (EMA, "on_train_batch_end", "in a step"),
            (UniDiffuser, "validation_step", "in mid-validation"),
            (UniDiffuser, "on_validation_epoch_start", "in mid-validation"),
            (UniDiffuser, "on_validation_epoch_end", "in mid-validation"),
        ):
            setattr(cls, name, self._around(getattr(cls, name), kind))
        for name in ("_foreach_lerp_", "_foreach_addcdiv_", "_foreach_add_"):  # in mid-step, in mid-average
            setattr(torch, name, self._around(getattr(torch, name), "in a step"))

    def _around(self, call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def around(*arguments: Any, **options: Any) -> Any:
            self.reached(kind)
            result = call(*arguments, **options)
            self.reached(kind)
            return result

        return around

    def _fsync(self, call: Callable[..., None], descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        kind = "in mid-rename" if path.is_dir() else self._saving(path)
        self.reached(kind)
        call(descriptor)
        self.reached(kind)

    def _replace(self, call: Callable[..., None], source: Any, target: Any, **options: Any) -> None:
        self.reached(kind := self._renaming(Path(target)))
        call(source, target, **options)
        self.reached(kind)

    def _unlink(self, call: Callable[..., None], path: Any, **options: Any) -> None:
        self.reached(kind := self._saving(Path(path)))
        call(path, **options)
        self.reached(kind)

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opening(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            stream = call(path, mode, *arguments, **options)
            return _Written(stream, partial(self.reached, self._saving(path))) if mode == "w+b" else stream

        return opening

    def _saving(self, path: Path) -> str:
        return "while the directory is written" if path.name.startswith(PARTS) else "in mid-save"

    def _renaming(self, path: Path) -> str:
        return "while the directory is written" if path.name.startswith(PARTS) else "in mid-rename"


class _Written:
    """A file that may be left half-written: the place is in the middle of a piece, with its first half on the disk."""

    def __init__(self, stream: BinaryIO, reached: Callable[[], None]) -> None:
        self._stream, self._reached = stream, reached

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self._stream.write(data[:half])
        self._stream.flush()
        self._reached()
        self._stream.write(data[half:])
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def _at(kind: str, number: int) -> None:
    """In the child: kill it at the n-th place of a kind."""
    left = [number]

    def reached(found: str) -> None:
        left[0] -= found == kind
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Places(reached).watch()


@functools.cache
def census() -> tuple[dict[str, int], float]:
    """Kind → how many places of it a whole training has; and how many seconds it takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training.prepare(folder)

        def count() -> None:
            found = Counter[str]()

            def reached(kind: str) -> None:
                found[kind] += 1
                os.pwrite(descriptor, "".join(f"{row} {number}\n" for row, number in sorted(found.items())).encode(), 0)

            descriptor = os.open(folder / "census", os.O_WRONLY | os.O_CREAT)
            Places(reached).watch()

        started = time.monotonic()
        training.train(folder, before=count)
        seconds = time.monotonic() - started
        rows = re.findall(r"^(.*) (\d+)$", (folder / "census").read_text(), re.MULTILINE)
        return {kind: int(number) for kind, number in rows}, seconds


def _kill(kind: str, shares: list[float], folder: Path) -> Outcome:
    """Survived if the command goes on, and all that it leaves is, bit for bit, what it leaves without a kill."""
    training.prepare(folder)
    counts, seconds = census()
    for share in shares:
        if kind == "any time":
            child = training.Child(folder)
            end = time.monotonic() + share * seconds
            while time.monotonic() < end and child.poll() is None:
                time.sleep(0.002)
            code = child.kill()
            if code == 0:  # it was faster; killed while it finds that all is done
                child = training.Child(folder)
                time.sleep(0.1 * share)
                code = child.kill()
        else:
            child = training.Child(folder, before=partial(_at, kind, int(share * counts[kind])))
            code = child.wait()
        if code not in (-signal.SIGKILL, 0):  # 0: one that goes on has fewer places
            return Outcome.SILENT
    outcome = training.resumed(folder)
    left_over = [path.name for path in (folder / "run").iterdir() if path.suffix == ".partial"]
    is_current = step_of(folder / "run") == training.STEPS
    return outcome if is_current and not left_over else Outcome.SILENT
