"""Where the data goes on, at a small count; and what the campaign must not miss."""

from __future__ import annotations

import itertools
import json

from tests.faults import position
from tests.faults.scoreboard import Scoreboard


def test_every_sample_comes_once_whoever_shares_the_work(tmp_path):
    """One and two processes, as it was and with others, even and uneven."""
    rows = list(position.faults(16, seed=0))
    board = Scoreboard()
    board.run([rows[i] for i in (2, 5, 7)], tmp_path)
    assert board.silent == [] and board.injected == 3


def test_twenty_positions_with_all_numbers_of_workers_and_processes():
    rows = [row.inject.args for row in position.faults(160, seed=0)]
    places = {(run.workers, run.processes, int(place * position.NUM_POSITIONS)) for run, _, place, _ in rows}
    assert len(places) == 160
    assert any(before.parts > 1 and after.parts != before.parts for before, after, *_ in rows)


def test_the_campaign_sees_a_sample_that_comes_twice_or_not_at_all(tmp_path):
    keys = [[str((8 * step + i) % 20) for i in range(8)] for step in range(5)]

    def is_once(steps):
        lines = [{"attempt": 0, "step": step, "rows": [*enumerate(row)]} for step, row in enumerate(steps)]
        (tmp_path / "ledger").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return position.each_once(tmp_path / "ledger", 5, 20)

    assert is_once(keys)
    assert not is_once(keys[:4]) and not is_once([*keys[:3], keys[2], keys[4]])
    assert not any(is_once([*keys[:2], row[:7], *keys[3:]]) for row in itertools.islice(keys, 2, 3))
