"""``python -m tests.faults``: inject faults, print the scoreboard, and write it into docs/reliability.md."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.faults.scoreboard import Fault, Outcome, Scoreboard
from unidiff_core.foundation.progress import tracked

CAMPAIGNS = {
    "files": (144, 900),
    "hostile": (128, 128),
    "numbers": (60, 400),
    "shards": (240, 1300),
    "signals": (54, 270),
}
"""Module of this folder → how many faults of it are injected, and in the long run."""
PAGE = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- scoreboard: written by `make faults` -->", "<!-- end of the scoreboard -->"


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit with 1 if a fault was silent."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__, allow_abbrev=False)
    parser.add_argument("campaigns", nargs="*", help=f"all if not given: {', '.join(CAMPAIGNS)}")
    parser.add_argument("--full", action="store_true", help="the long run")
    parser.add_argument("--seed", type=int, default=0, help="which faults")
    options = parser.parse_args(arguments)
    if unknown := set(options.campaigns) - CAMPAIGNS.keys():
        parser.error(f"unknown campaign {', '.join(sorted(unknown))}; known: {', '.join(CAMPAIGNS)}")
    names = options.campaigns or list(CAMPAIGNS)
    board, started = Scoreboard(), time.monotonic()
    faults = [fault for name in names for fault in campaign(name, CAMPAIGNS[name][options.full], options.seed)]
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        for number, fault in enumerate(tracked(faults, "faults", len(faults))):
            board.run([fault], Path(folder) / str(number))
    seconds = time.monotonic() - started
    Console(width=100).print(board.table())
    for sentence in board.silent:
        print(f"silent: {sentence}", file=sys.stderr)
    print(f"{board.injected} faults in {seconds / 60:.1f} minutes")
    if not options.campaigns:
        record(board, seconds, full=options.full, seed=options.seed)
    sys.exit(bool(board.silent))


def campaign(name: str, count: int, seed: int) -> list[Fault]:
    """The faults of a campaign."""
    return list(importlib.import_module(f"tests.faults.{name}").faults(count, seed))


def record(board: Scoreboard, seconds: float, *, full: bool, seed: int) -> None:
    """Write the scoreboard into the page, and beside it as JSON."""
    rows = {**board.counts, "**all**": sum(board.counts.values(), Counter())}
    columns = [row.value for row in Outcome]
    table = [f"| fault | injected | {' | '.join(columns)} |", "|---" + "|--:" * (1 + len(columns)) + "|"]
    for kind, counts in rows.items():
        numbers = [sum(counts.values()), *(counts[row] for row in Outcome)]
        table.append(f"| {kind} | {' | '.join(map(str, numbers))} |")
    command = f"make faults{' FULL=1' if full else ''}"
    said = f"`{command}`, seed {seed}: {board.injected} faults in {seconds / 60:.1f} minutes on this machine."
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text("\n".join([before, said, "", *table, after]))
    counts = {kind: {row.value: counts[row] for row in Outcome} for kind, counts in board.counts.items()}
    summary = {"command": command, "seed": seed, "seconds": round(seconds), "counts": counts, "silent": board.silent}
    PAGE.with_suffix(".json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
