"""Progress where there is no terminal: lines at regular shares of the work and times."""

from __future__ import annotations

import re

from unidiff_core.foundation.progress import Lines, progress, tracked


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


def lines_of(capsys, seconds_a_step, total, done=0, **more):
    clock = Clock()
    lines = Lines("train", total, "steps", done, clock)
    for step in range(done + 1, total + 1):
        clock.now += seconds_a_step
        lines(step, "loss 0.5", **more)
    return capsys.readouterr().err.splitlines()


def test_lines_come_at_tenths_of_the_work(capsys):
    rows = lines_of(capsys, 1.0, 200, scale=64)
    assert [int(re.search(r"(\d+) of 200", row)[1]) for row in rows] == list(range(20, 201, 20))
    assert rows[0] == "train: 20 of 200 steps, loss 0.5, 64 samples a second, 0:03:00 left"
    assert rows[-1] == "train: 200 of 200 steps, loss 0.5, 64 samples a second, 0:03:20 taken"


def test_slow_steps_are_told_by_time_and_long_runs_less_often(capsys):
    rows = lines_of(capsys, 20.0, 100)
    assert rows[0].startswith("train: 2 of 100 steps") and len(rows) > 25
    assert len(lines_of(capsys, 1.0, 36_000)) < 250  # ten hours
    assert len(lines_of(capsys, 0.001, 1000)) == 1  # a second: the end alone


def test_a_resumed_run_counts_its_own_steps_for_the_time_left(capsys):
    rows = lines_of(capsys, 1.0, 200, done=100)
    assert rows[0] == "train: 110 of 200 steps, loss 0.5, 1 samples a second, 0:01:30 left"


def test_another_limit_may_be_nearer(capsys):
    assert lines_of(capsys, 1.0, 200, most=7.0)[0].endswith("0:00:07 left")


def test_work_of_unknown_length(capsys):
    clock = Clock()
    lines = Lines("read", clock=clock)
    clock.now = 31
    lines(62)
    assert capsys.readouterr().err == "read: 62 samples, 2 samples a second\n"


def test_tracked_items_are_the_same_and_nothing_has_no_bar(capsys):
    assert list(tracked("abc", "letters", 3)) == list("abc")
    assert "letters: 3 of 3 samples" in capsys.readouterr().err
    with progress("nothing", 0, "shards"):
        pass
    assert capsys.readouterr() == ("", "")
