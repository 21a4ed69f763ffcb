"""What is committed of the counted faults: as many as are promised, of every campaign, and none silent."""

from __future__ import annotations

import json
import re

import pytest

from tests.faults.__main__ import CAMPAIGNS, COMMANDS, PAGE
from tests.faults.scoreboard import Fault, Outcome, Scoreboard


def _raises(folder):
    raise KeyError("nobody expects it")


def test_what_raises_or_is_silent_counts_as_silent(tmp_path):
    board = Scoreboard()
    outcomes = {"good": lambda _: Outcome.SURVIVED, "bad": lambda _: Outcome.SILENT, "raises": _raises}
    board.run((Fault("kind", name, inject) for name, inject in outcomes.items()), tmp_path)
    assert (board.injected, [row.partition(": ")[2] for row in board.silent]) == (
        3, ["bad", "raises: KeyError: 'nobody expects it'"],
    )  # fmt: skip


@pytest.mark.parametrize(("command", "least", "minutes"), [(COMMANDS[0], 500, 15), (COMMANDS[1], 3000, None)])
def test_the_committed_scoreboard(command, least, minutes):
    rows = json.loads(PAGE.with_suffix(".json").read_text())[command]
    assert rows.keys() == CAMPAIGNS.keys(), "a campaign was never run: python -m tests.faults NAME"
    counts = [count for row in rows.values() for count in row["counts"].values()]
    injected, silent = sum(sum(row.values()) for row in counts), sum(row["silent"] for row in counts)
    assert injected >= least and silent == 0 and not any(row["silent"] for row in rows.values())
    assert f"`{command}`, seed 0: {injected} faults in " in PAGE.read_text()
    assert minutes is None or sum(row["seconds"] for row in rows.values()) <= 60 * minutes


def test_every_test_that_the_page_names_is_there():
    table = PAGE.read_text().partition("| promise | tests |")[2].partition("\n\n")[0]
    named = re.findall(r"`((?:core|codecs|faults|test_)[\w/]*)`", table)
    assert len(named) > 40 and not [name for name in named if not (PAGE.parents[1] / f"tests/{name}.py").is_file()]
