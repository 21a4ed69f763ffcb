"""The campaign of numbers that go bad, at a small count."""

from __future__ import annotations

from tests.faults import numbers
from tests.faults.scoreboard import Scoreboard
from unidiff_core.training import finite

COUNT = 12


def test_no_bad_number_is_silent(tmp_path):
    board = Scoreboard()
    board.run(numbers.faults(COUNT, 0), tmp_path)
    assert board.silent == [] and board.injected == COUNT
    assert any("one process" in kind for kind in board.counts)


def test_the_campaign_sees_a_step_that_is_not_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "are_finite", lambda tensors: True)
    monkeypatch.setattr(finite.SkipNonFinite, "on_before_backward", lambda *_: None)
    board = Scoreboard()
    board.run(numbers.faults(3, 0), tmp_path)
    assert len(board.silent) == 3
