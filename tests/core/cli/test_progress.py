"""What the commands say of their progress where the output is no terminal."""

from __future__ import annotations

from types import SimpleNamespace

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar, Timer

from unidiff_core.cli import progress
from unidiff_core.cli.progress import StepLines, StepProgressBar, with_progress


def test_a_bar_on_a_terminal_and_the_users_own_wherever(monkeypatch):
    timer = Timer()
    assert [type(row) for row in with_progress([timer], None)] == [Timer, StepLines]
    monkeypatch.setattr(progress, "has_terminal", lambda: True)
    assert isinstance(with_progress([], None)[0], StepProgressBar)
    own = [RichProgressBar()]
    assert with_progress(own, True) == own and with_progress([], False) == []


def test_the_time_left_is_that_of_max_time_if_it_is_less():
    timer = Timer(duration={"seconds": 50})
    assert progress._time_left(SimpleNamespace(callbacks=[timer])) == 50
    assert progress._time_left(SimpleNamespace(callbacks=[])) == float("inf")


def test_only_the_first_process_writes(capsys):
    lines = StepLines()
    trainer = pl.Trainer(max_steps=1, logger=False, enable_checkpointing=False, callbacks=[lines], accelerator="cpu")
    lines.disable()
    lines._begin("test", [1])
    lines.on_test_batch_end(trainer)
    assert "batches" not in capsys.readouterr().err
    lines.enable()
    lines.on_test_batch_end(trainer)
    assert "test: 2 of 1 batches" in capsys.readouterr().err
