"""Kills at random points of real trainings, at a small count."""

from __future__ import annotations

from tests.faults import kills
from tests.faults.scoreboard import Outcome, Scoreboard

COUNT = 25


def test_no_kill_changes_a_run(tmp_path):
    board = Scoreboard()
    board.run(kills.faults(COUNT, seed=1), tmp_path)
    assert board.silent == [] and board.injected == COUNT
    assert sum(row[Outcome.SURVIVED] for row in board.counts.values()) == COUNT
    assert set(kills.census()[0]) == {*kills.KINDS} - {"any time"}
