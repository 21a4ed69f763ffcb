"""The campaign of signals, at a small count; and what it must not miss."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from tests.faults import signals, training
from tests.faults.scoreboard import Fault, Outcome, Scoreboard
from unidiff_core import UniDiffuser
from unidiff_core.training import accumulation
from unidiff_core.training.signals import Signals

CHOSEN = (
    ("SIGTERM", "in a step", 7, 2, 8),
    ("SIGINT", "between two parameters", 2, 0, 8),
    ("SIGUSR1 under SLURM", "in a save", 4, 0, 8),
    ("SIGTERM", "in validation", 4, 0, 8),
    ("SIGINT twice", "waiting for data", 6, 2, 8),
    ("SIGINT", "writing the model", 7, 0, 8),
)
"""Kind, moment, step, workers, micro-batches between validations."""


def run(folder, *rows):
    board = Scoreboard()
    board.run((Fault(row[0], str(row), partial(signals._inject, *row)) for row in rows), folder)
    return board


def test_no_signal_is_silent(tmp_path):
    board = run(tmp_path, *CHOSEN)
    assert board.silent == [] and sum(row[Outcome.SURVIVED] for row in board.counts.values()) == len(CHOSEN)
    assert {row[0] for row in CHOSEN} == signals.SENT.keys() and {row[1] for row in CHOSEN} == signals.MOMENTS.keys()


def save_in_the_handler(self, number, frame):
    self._number = number
    self._act(self._trainer)


@pytest.mark.parametrize(
    ("owner", "name", "mutant", "row"),
    [
        (Signals, "_note", save_in_the_handler, CHOSEN[1]),
        (accumulation, "reopen_validation", lambda loop: None, CHOSEN[3]),
    ],
)
def test_the_campaign_sees(tmp_path, monkeypatch, owner, name, mutant, row):
    listen = Signals._listen

    def listen_and_remember(self, trainer):
        self._trainer = trainer
        listen(self, trainer)

    monkeypatch.setattr(Signals, "_listen", listen_and_remember)
    monkeypatch.setattr(owner, name, mutant)
    assert len(run(tmp_path, row).silent) == 1


def test_the_death_of_one_process_is_told_by_the_others_and_gone_on_after(tmp_path):
    """Three processes, of which the second is killed; the result is that of one process with the same batches."""
    options = ("--data.batch_size=12", "--data.micro_batch_size=2")
    for name in ("whole", "died"):
        (tmp_path / name).mkdir()
        training.prepare(tmp_path / name)

    def before(rank):
        if rank == 1:
            kill = partial(os.kill, os.getpid(), signal.SIGKILL)
            signals._around(UniDiffuser, "training_step", lambda model, batch, *_: batch.step == 5, kill)

    rows = training.together(tmp_path / "died", 3, *options, before=before)
    codes = [row.wait(60) for row in rows]
    assert codes == [2, -signal.SIGKILL, 2]
    for row in (rows[0], rows[2]):
        said = " ".join(row.said.split())
        assert "of 3 stops after step 5: another one died, or cannot be reached" in said and "Traceback" not in said
    again = training.together(tmp_path / "died", 3, *options)
    assert [row.wait(60) for row in again] == [0, 0, 0]
    training.train(tmp_path / "whole", *options)
    found, whole = training.result(tmp_path / "died"), training.result(tmp_path / "whole")
    assert found.keys() == whole.keys()
    difference = max((found[name].double() - value.double()).abs().max().item() for name, value in whole.items())
    assert difference < 1e-5  # three numbers are added up in another order than by one process
