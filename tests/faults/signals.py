"""Signals: SIGTERM, Ctrl-C once and twice, SLURM's requeue, at all kinds of moments, with workers and without.

A signal reaches the whole group of processes, as a terminal and torchrun send it. Once: the run ends with the right
exit code and a sentence, `last.ckpt` is of the first boundary of steps after the signal, and the same command goes on
from there to the result, bit for bit, of a run without a signal. Ctrl-C twice: the run ends at once, and what is there
is whole. SIGUSR1 twice: saved for, and requeued once; the stand-in for `scontrol` ends the run as SLURM does.
"""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults import training
from tests.faults.scoreboard import Fault, Outcome
from unidiff_core import UniDiffuser
from unidiff_core.data.module import Placed
from unidiff_core.training import sealed

PLATEAU = (
    '--trainer.callbacks+={"class_path": "Plateau", "init_args": {"patience": 1, "threshold": 0.9, "factor": 0.5}}'
)
"""Each validation after the first lowers the rate: one that is lost, or counts twice, changes the weights."""
PAIR = (PLATEAU, "--data.micro_batch_size=2")
SENT = {
    "SIGTERM": (signal.SIGTERM, 1, 143),
    "SIGINT": (signal.SIGINT, 1, 130),
    "SIGINT twice": (signal.SIGINT, 2, -signal.SIGINT),
    "SIGUSR1 under SLURM": (signal.SIGUSR1, 2, 143),
}
"""Kind → signal, how often it is sent, and the exit code; a process that a signal ended has its number, negative."""
PAIRS = 9
"""One of so many faults is in a training on two processes."""
EVERY, LATEST = 3, 8
"""Steps between checkpoints; and before which a signal comes, so that something is left to be done after it."""
SLURM = {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "7", "JOB_NAME": "train", "NNODES": "1"}


def faults(count: int, seed: int) -> Iterator[Fault]:
    """Signals by turns, moments by turns, workers at random."""
    rng = random.Random(seed)
    for number in range(count):
        if number % PAIRS == PAIRS - 1:
            kind, step = list(SENT)[number // PAIRS % 2], rng.randrange(1, LATEST)
            name = f"{kind} to one of two processes in step {step}"
            yield Fault(f"{kind} to one of two processes", name, partial(_inject_pair, kind, step, rng.randrange(2)))
            continue
        kind = list(SENT)[number % len(SENT)]
        moment = list(MOMENTS)[number // len(SENT) % len(MOMENTS)]
        step, workers = rng.randrange(1, LATEST), rng.choice((0, 2))
        interval = rng.choice((8, 8, 7))  # micro-batches: after every fourth step, or in the middle of one
        name = f"{kind} {moment} after step {step}, {workers} workers, validation after {interval} micro-batches"
        yield Fault(f"{kind} {moment}", name, partial(_inject, kind, moment, step, workers, interval))


def _inject(kind: str, moment: str, step: int, workers: int, interval: int, folder: Path) -> Outcome:
    training.prepare(folder)
    number, times, code = SENT[kind]
    options = [PLATEAU, f"--trainer.val_check_interval={interval}"]
    send = Send(number, times)
    env = _slurm(folder) if number == signal.SIGUSR1 else {}
    child = training.Child(
        folder, *options, f"--data.num_workers={workers}", before=partial(_prepare, moment, send, step), env=env
    )
    ended, said = child.wait(), child.said
    # A worker whose parent is gone at once says so itself, if it was just sending.
    if ended != code or ("Traceback" in said and not (times == 2 and workers)):
        raise RuntimeError(f"it ended with {ended}: {said[-1500:]}")
    if (times == 1 or env) and (wrong := _wrong(folder, said, number, step, moment, interval)):
        raise RuntimeError(f"{wrong}; it said: {said[-1500:]}")
    return training.resumed(folder, *options)


def _inject_pair(kind: str, step: int, victim: int, folder: Path) -> Outcome:
    """The signal reaches one process; both stop after the same step."""
    training.prepare(folder)
    number, times, code = SENT[kind]
    send = Send(number, times)

    def before(rank: int) -> None:
        _prepare("in a step", send if rank == victim else lambda: None, step)

    pair = training.together(folder, 2, *PAIR, before=before)
    ended, said = [row.wait() for row in pair], "\n".join(row.said for row in pair)
    if ended != [code, code] or "Traceback" in said:
        raise RuntimeError(f"they ended with {ended}: {said[-1500:]}")
    if wrong := _wrong(folder, said, number, step, "in a step", 8):
        raise RuntimeError(f"{wrong}; they said: {said[-1500:]}")
    if said.count("is saved in") != 1:
        raise RuntimeError(f"each of them said so: {said[-1500:]}")
    _train_pair(folder)
    return Outcome.SURVIVED if training.same(training.result(folder), _pair()) else Outcome.SILENT


def _train_pair(folder: Path) -> None:
    for row in training.together(folder, 2, *PAIR):
        if code := row.wait():
            raise RuntimeError(f"a training on two processes ended with {code}: {row.said[-1500:]}")


@functools.cache
def _pair() -> dict[str, torch.Tensor]:
    """The result of a training on two processes that nothing happens to."""
    with tempfile.TemporaryDirectory() as name:
        training.prepare(Path(name))
        _train_pair(Path(name))
        return training.result(Path(name))


def _wrong(folder: Path, said: str, number: int, step: int, moment: str, interval: int) -> str:
    """What is wrong with what a signal left; empty if nothing is."""
    last = torch.load(folder / "run/last.ckpt", weights_only=True)
    saved, parts = last["global_step"], last["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    if not re.search(rf"step {saved} is saved in \S*run/last\.ckpt; the same command goes on from there", said):
        return f"no sentence about step {saved}"
    if parts % 2 and not (moment == "in validation" and interval % 2):
        return f"saved in the middle of a step, after {parts} micro-batches"
    if number == signal.SIGUSR1:
        calls = (folder / "requeued").read_text().splitlines()
        return "" if calls == ["requeue 7"] else f"requeued {calls}"
    boundaries = _boundaries(moment, step, interval)
    return "" if saved in boundaries else f"saved step {saved}, where {boundaries} was the next boundary"


def _boundaries(moment: str, step: int, interval: int) -> list[int]:
    """The first whole steps after a signal; several where it depends on how far data was read ahead."""
    validation = next(row // 2 for row in range(interval, 99, interval) if row // 2 >= step)
    known = {
        "waiting for data": [step - 1, step, step + 1],
        "in a save": [-(-step // EVERY) * EVERY + 1],
        "in validation": [validation],
        "writing the model": [validation + 1],
    }
    found = known.get(moment, [step + 1])
    return [found[0] - 1, *found] if interval % 2 else found  # a validation within the next step comes before its end


class Send:
    """Sends a signal to this process's group, once in this process and those that it forks."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times = number, times

    def __call__(self) -> None:
        try:
            os.mkdir(f"sent-{self.number}")  # noqa: PTH102 — once for all processes
        except FileExistsError:
            return
        ready, go = os.pipe()
        if (sender := os.fork()) == 0:  # workers tell what their parent sends from what others send
            signal.signal(self.number, signal.SIG_IGN)
            os.read(ready, 1)  # inside of a fork Python drops what a handler raises
            for _ in range(self.times):
                os.killpg(os.getpgrp(), self.number)
                time.sleep(0.02)
            os._exit(0)
        os.write(go, b".")
        os.waitpid(sender, 0)
        os.close(ready)
        os.close(go)


def _prepare(moment: str, send: Callable[[], None], step: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs in the background has it ignored
    MOMENTS[moment](send, step)


def _slurm(folder: Path) -> dict[str, str]:
    """Variables of a SLURM job, and a `scontrol` that notes what it is told and ends the job as SLURM does."""
    command = folder / "bin/scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {folder}/requeued\nkill -TERM $PPID\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path} | {f"SLURM_{name}": value for name, value in SLURM.items()}


def _around(cls: Any, name: str, when: Callable[..., bool], send: Callable[[], None]) -> None:
    """Send a signal before a method's call, where `when` says so of its arguments."""
    method = getattr(cls, name)

    @functools.wraps(method)
    def around(self: Any, *arguments: Any, **options: Any) -> Any:
        if when(self, *arguments, **options):
            send()
        return method(self, *arguments, **options)

    setattr(cls, name, around)


def _in_a_step(send: Callable[[], None], step: int) -> None:
    _around(UniDiffuser, "training_step", lambda model, batch, *_: batch.step == step, send)


def _between_parameters(send: Callable[[], None], step: int) -> None:
    """Inside of the optimizer's step, when a part of the parameters is done."""
    module: Any = sys.modules["torch.optim.adam"]
    count = module.adam

    def in_two_parts(parameters: Any, *rest: Any, **options: Any) -> None:
        steps = rest[4]
        half = len(parameters) // 2
        columns = [list(row) for row in rest[:5]]
        for part in (slice(half), slice(half, None)):
            if part.start and float(steps[0]) == step + 1:
                send()
            rows = [row[part] for row in columns]
            count(parameters[part], *rows, *rest[5:], **options)

    module.adam = in_two_parts


def _in_a_save(send: Callable[[], None], step: int) -> None:
    seal = sealed._seal

    def late(stream: Any) -> None:
        if _step_of(stream.name) >= step:
            send()
        seal(stream)

    sealed._seal = late


def _step_of(path: str) -> int:
    found = re.search(r"step=(\d+)", path)
    return int(found[1]) if found else 0


def _in_validation(send: Callable[[], None], step: int) -> None:
    _around(UniDiffuser, "validation_step", lambda model, *_: model.global_step >= step, send)


def _waiting_for_data(send: Callable[[], None], step: int) -> None:
    def slowly() -> None:
        send()
        time.sleep(0.1)

    _around(Placed, "__getitem__", lambda samples, place: place.step == step, slowly)


def _writing_the_model(send: Callable[[], None], step: int) -> None:
    _around(UniDiffuser, "save_pretrained", lambda model, *_, **__: model.global_step >= step, send)


MOMENTS: dict[str, Callable[[Callable[[], None], int], None]] = {
    "in a step": _in_a_step,
    "between two parameters": _between_parameters,
    "in a save": _in_a_save,
    "in validation": _in_validation,
    "waiting for data": _waiting_for_data,
    "writing the model": _writing_the_model,
}
