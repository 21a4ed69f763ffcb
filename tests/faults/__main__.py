"""``python -m tests.faults``: inject faults, print the scoreboard, and write it into docs/reliability.md."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.faults.scoreboard import Outcome, Scoreboard
from unidiff_core.foundation.progress import tracked

CAMPAIGNS = {
    "files": (144, 540),
    "hostile": (128, 128),
    "numbers": (60, 400),
    "shards": (240, 1700),
    "signals": (54, 130),
    "kills": (48, 200),
    "position": (24, 100),
    "processes": (12, 48),
    "mutants": (10, 10),
}
"""Module of this folder → how many faults of it are injected, and in the long run."""
PAGE = Path(__file__).parents[2] / "docs/reliability.md"
COMMANDS = "make faults", "make faults FULL=1"
END = "<!-- end of the scoreboard -->"


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit with 1 if a fault was silent."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__, allow_abbrev=False)
    parser.add_argument("campaigns", nargs="*", help=f"all if not given: {', '.join(CAMPAIGNS)}")
    parser.add_argument("--full", action="store_true", help="the long run")
    parser.add_argument("--seed", type=int, default=0, help="which faults")
    options = parser.parse_args(arguments)
    if unknown := set(options.campaigns) - CAMPAIGNS.keys():
        parser.error(f"unknown campaign {', '.join(sorted(unknown))}; known: {', '.join(CAMPAIGNS)}")
    silent: list[str] = []
    for name in options.campaigns or CAMPAIGNS:
        board, seconds = run(name, CAMPAIGNS[name][options.full], options.seed)
        record(name, board, seconds, full=options.full, seed=options.seed)
        silent += board.silent
    for sentence in silent:
        print(f"silent: {sentence}", file=sys.stderr)
    sys.exit(bool(silent))


def run(name: str, count: int, seed: int) -> tuple[Scoreboard, float]:
    """Inject the faults of a campaign; how many seconds that took."""
    board, started = Scoreboard(), time.monotonic()
    faults = list(importlib.import_module(f"tests.faults.{name}").faults(count, seed))
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        for number, fault in enumerate(tracked(faults, name, len(faults))):
            place = Path(folder) / str(number)
            board.run([fault], place)
            shutil.rmtree(place, ignore_errors=True)
    seconds = time.monotonic() - started
    Console(width=100).print(board.table())
    print(f"{name}: {board.injected} faults in {seconds / 60:.1f} minutes", flush=True)
    return board, seconds


def record(name: str, board: Scoreboard, seconds: float, *, full: bool, seed: int) -> None:
    """Write what came of a campaign into the page, in place of what came of it before, and beside the page as JSON."""
    command, path = COMMANDS[full], PAGE.with_suffix(".json")
    everything = json.loads(path.read_text())
    counts = {kind: {row.value: counts[row] for row in Outcome} for kind, counts in board.counts.items()}
    own = everything.setdefault(command, {})
    own[name] = {"seed": seed, "seconds": round(seconds), "counts": counts, "silent": board.silent}
    everything[command] = own = {name: own[name] for name in CAMPAIGNS if name in own}
    path.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    columns = [row.value for row in Outcome]
    rows = [(kind, counts) for campaign in own.values() for kind, counts in campaign["counts"].items()]
    rows += [("**all**", {column: sum(counts[column] for _, counts in rows) for column in columns})]
    table = [f"| fault | injected | {' | '.join(columns)} |", "|---" + "|--:" * (1 + len(columns)) + "|"]
    table += [
        f"| {kind} | {' | '.join(str(row) for row in (sum(counts.values()), *map(counts.get, columns)))} |"
        for kind, counts in rows
    ]
    minutes = sum(campaign["seconds"] for campaign in own.values()) / 60
    said = f"`{command}`, seed {seed}: {sum(rows[-1][1].values())} faults in {minutes:.0f} minutes on this machine."
    text, begin = PAGE.read_text(), f"<!-- scoreboard: written by `{command}` -->"
    start = text.index(begin) + len(begin)
    PAGE.write_text("\n".join([text[:start], said, "", *table, text[text.index(END, start) :]]))


if __name__ == "__main__":
    main()
