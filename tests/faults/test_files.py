"""Damaged files and disks that refuse, at a small count; and what the campaign must not miss."""

from __future__ import annotations

from tests.faults import files
from tests.faults.scoreboard import Outcome, Scoreboard


def test_no_damage_is_silent(tmp_path):
    board = Scoreboard()
    board.run(files.faults(36, seed=1), tmp_path)
    assert not board.silent
    assert board.injected == 36 and sum(row[Outcome.DETECTED] for row in board.counts.values()) >= 24
