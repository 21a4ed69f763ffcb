"""Several processes, at a small count: four that divide, one that is slow, folders that lag."""

from __future__ import annotations

from functools import partial

from tests.faults import processes
from tests.faults.scoreboard import Fault, Outcome, Scoreboard

CHOSEN = (
    ("one is slow", processes.Run(4, "ddp", 3, 2, "waiting for data")),
    ("nothing of the run folder is seen", processes.Run(3, "fsdp2", 1, 1, "")),
    ("the latents lag", processes.Run(2, "ddp", 1, 1, "")),
)
"""With four processes under DDP, and three under FSDP2."""


def test_several_processes_give_the_run_of_one_whatever_they_see_and_when(tmp_path):
    board = Scoreboard()
    board.run((Fault(kind, str(run), partial(processes._inject, kind, run)) for kind, run in CHOSEN), tmp_path)
    assert board.silent == [] and sum(row[Outcome.SURVIVED] for row in board.counts.values()) == len(CHOSEN)
