"""The scoreboard: each injected fault is survived, detected, or silent; silent must be 0.

A campaign is a module of this folder with `faults(count, seed)`, which gives that many faults; `CAMPAIGNS` names them.
The tests run each at a small count, `make faults` at 500 in all, and `make faults FULL=1` at 3,000.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from rich.table import Table


class Outcome(Enum):
    """What came of a fault."""

    SURVIVED = "survived"
    """The result is the same, to the bit, as without the fault."""
    DETECTED = "detected"
    """A sentence, a count or an exit code said so, and nothing that was good is lost."""
    SILENT = "silent"
    """Neither: a wrong result that looks like a right one, a hang, or something lost without a word."""


@dataclass(frozen=True)
class Fault:
    """One fault: what it is, and how it is injected into a fresh, empty folder."""

    kind: str
    name: str
    inject: Callable[[Path], Outcome]


@dataclass
class Scoreboard:
    """Outcomes by kind of fault."""

    counts: dict[str, Counter[Outcome]] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    """Names of the faults that were silent, each with why it is taken for one."""

    def run(self, faults: Iterable[Fault], folder: Path) -> None:
        """Inject each fault into a folder of its own under `folder`; an unexpected exception counts as silent."""
        for number, fault in enumerate(faults):
            place = folder / f"{fault.kind.replace(' ', '_')}_{number}"
            place.mkdir(parents=True)
            try:
                outcome = fault.inject(place)
                why = ""
            except Exception as error:
                outcome, why = Outcome.SILENT, f": {type(error).__name__}: {error}"
            self.counts.setdefault(fault.kind, Counter())[outcome] += 1
            if outcome is Outcome.SILENT:
                self.silent.append(f"{fault.kind}: {fault.name}{why}")

    @property
    def injected(self) -> int:
        """How many faults there were."""
        return sum(sum(counts.values()) for counts in self.counts.values())

    def table(self) -> Table:
        """A row for each kind, and their sum."""
        table = Table("fault", "injected", *(outcome.value for outcome in Outcome))
        rows = [*self.counts.items(), ("all", sum(self.counts.values(), Counter()))]
        for kind, counts in rows:
            table.add_row(kind, str(sum(counts.values())), *(str(counts[outcome]) for outcome in Outcome))
        return table
