"""Progress of long work: a bar on a terminal; elsewhere lines on stderr, at regular shares of the work and times."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

SHARE = 0.1
"""A line for each such share of the work, …"""
APART = 5.0
"""… if it is as many seconds after the last one, …"""
SECONDS = (30.0, 300.0)
"""… and one after as many seconds in any case: the first number at the beginning, the second in a long run."""
SLOWING = 20
"""From one to the other in proportion: a line after 1/20 of the time so far."""
T = TypeVar("T")


def has_terminal() -> bool:
    """Whether the output is a terminal or a notebook, on which a bar can move."""
    console = Console()
    return console.is_interactive or console.is_jupyter


class Lines:
    """Writes what is done of some work to stderr, whenever that is due.

    Args:
        title: what is done.
        total: how much there is of it; infinite or 0 if that is not known.
        unit: of what, in the plural.
        done: how much was done before.
        clock: seconds.
    """

    def __init__(
        self,
        title: str,
        total: float = math.inf,
        unit: str = "samples",
        done: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.unit, self.clock = title, total or math.inf, unit, clock
        self._begin = self._last = (done, clock())

    def is_due(self, done: float) -> bool:
        """Whether it is time for a line. The end has one, if it is new."""
        (begun, start), (before, last), now = self._begin, self._last, self.clock()
        if done <= before:
            return False
        waits = min(max(SECONDS[0], (now - start) / SLOWING), SECONDS[1])
        reaches = (done - begun) // (SHARE * (self.total - begun)) > (before - begun) // (SHARE * (self.total - begun))
        return done >= self.total or now - last >= waits or (reaches and now - last >= APART)

    def __call__(self, done: float, *notes: str, scale: float = 1, most: float = math.inf) -> None:
        """Write a line if it is due.

        Args:
            done: how much is done.
            *notes: what to say besides.
            scale: samples in a unit, for their number in a second; 0 says none.
            most: seconds that are left at most.
        """
        if self.is_due(done):
            self.write(done, *notes, scale=scale, most=most)

    def write(self, done: float, *notes: str, scale: float = 1, most: float = math.inf) -> None:
        """Write a line."""
        now = self.clock()
        (begun, start), (before, last) = self._begin, self._last
        self._last = (done, now)
        of = "" if math.isinf(self.total) else f" of {self.total:g}"
        parts = [f"{self.title}: {int(done)}{of} {self.unit}", *notes]
        if scale and now > last:
            parts.append(f"{(done - before) * scale / (now - last):.3g} samples a second")
        left = min((self.total - done) * (now - start) / (done - begun), most) if done > begun else most
        if done >= self.total:
            parts.append(f"{timedelta(seconds=round(now - start))} taken")
        elif not math.isinf(left):
            parts.append(f"{timedelta(seconds=round(left))} left")
        print(", ".join(parts), file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: float, unit: str = "samples", *, transient: bool = False) -> Iterator[Lines | _Bar]:
    """Show the progress of some work, of whose parts the caller tells how many are done.

    Args:
        title: what is done.
        total: how much of it.
        unit: of what, in the plural.
        transient: whether the bar goes when it is full.
    """
    if not has_terminal() or not total:  # of nothing there is no bar
        yield Lines(title, total, unit)
        return
    with Progress(transient=transient) as bars:
        yield _Bar(bars, title, total)


class _Bar:
    """A bar that is told what `Lines` are."""

    def __init__(self, bars: Progress, title: str, total: float) -> None:
        self.bars, self.bar = bars, bars.add_task(title, total=total)

    def __call__(self, done: float, *notes: str, scale: float = 1) -> None:
        self.bars.update(self.bar, completed=done)


def tracked(items: Iterable[T], title: str, total: float, unit: str = "samples") -> Iterator[T]:
    """The same items, with their progress shown."""
    with progress(title, total, unit) as show:
        for i, item in enumerate(items):
            yield item
            show(i + 1)
