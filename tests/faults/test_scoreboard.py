"""What is committed of the counted faults: as many as are promised, of every campaign, and none silent."""

from __future__ import annotations

import json
import re

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


def committed(command):
    """Campaign → its row; how many faults there are in all, and that none was silent."""
    rows = json.loads(PAGE.with_suffix(".json").read_text())[command]
    counts = [count for row in rows.values() for count in row["counts"].values()]
    injected = sum(sum(row.values()) for row in counts)
    assert f"`{command}`, seed 0: {injected} faults in " in PAGE.read_text()
    assert not any(row["silent"] for row in counts) and not any(row["silent"] for row in rows.values())
    return rows, injected


def test_the_committed_scoreboard():
    rows, injected = committed(COMMANDS[0])
    assert rows.keys() == CAMPAIGNS.keys(), "a campaign was never run: python -m tests.faults NAME"
    assert injected >= 500 and sum(row["seconds"] for row in rows.values()) <= 15 * 60


def test_the_committed_long_run():
    """Campaigns that are not in it yet are not; of those that are, all of their faults were injected."""
    rows, injected = committed(COMMANDS[1])
    counted = {name: sum(sum(row.values()) for row in own["counts"].values()) for name, own in rows.items()}
    assert counted == {name: CAMPAIGNS[name][1] for name in rows} and injected >= 3000


def test_every_test_that_the_page_names_is_there():
    table = PAGE.read_text().partition("| promise | tests |")[2].partition("\n\n")[0]
    named = re.findall(r"`((?:core|codecs|faults|test_)[\w/]*)`", table)
    assert len(named) > 40 and not [name for name in named if not (PAGE.parents[1] / f"tests/{name}.py").is_file()]
