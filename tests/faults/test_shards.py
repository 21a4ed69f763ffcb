"""The campaign of bad shards, at a small count."""

from __future__ import annotations

from tests.faults import shards
from tests.faults.scoreboard import Outcome, Scoreboard

COUNT = 80


def test_no_bad_shard_is_silent(tmp_path):
    board = Scoreboard()
    board.run(shards.faults(COUNT, 0), tmp_path)
    assert board.silent == [] and board.injected == COUNT
    assert board.counts.keys() == {*shards.KINDS, "random mutant", "source stalls", "source fails"}


def test_the_judge_sees_what_is_wrong():
    clean = shards.clean()
    short = {key: value for key, value in clean.items() if key != "0003"}

    def judged(found, lost=0, policy="skip_sample"):
        return shards.judged(lambda: (found, lost), policy, len(clean))

    assert judged(clean) is Outcome.SURVIVED and judged(short, 1) is Outcome.DETECTED
    assert judged(short) is judged(short, 2) is judged(clean | {"0003": (4.0, 1.0)}) is Outcome.SILENT
