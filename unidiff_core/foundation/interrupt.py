"""Signals that end a command: one exception, one exit code, and workers that leave them to their parent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C; and what clusters, containers and `kill` send."""
SECONDS = 5.0
"""Between two looks of a worker at whether its parent is there."""


class Interrupted(SystemExit):
    """A signal ended the work; its exit code is 128 and the signal's number: 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        number: of the signal.
        said: what a person is told: what was kept, and how to go on; None leaves that to the command, and is for one
            process of several.
    """

    def __init__(self, number: int, said: str | None = None) -> None:
        super().__init__(128 + number)
        self.number, self.said = number, said

    def __str__(self) -> str:
        return self.said or ""


def is_heard(number: int) -> bool:
    """Whether a signal may be handled here: in the main thread, and not one that whoever began this process put off."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(number) is not signal.SIG_IGN


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` at the first signal that ends a command; Ctrl-C once more ends the process at once."""
    before = {number: signal.getsignal(number) for number in ENDING if is_heard(number)}
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    at_once_if_repeated(number)
    raise Interrupted(number)


def at_once_if_repeated(number: int) -> None:
    """Give Ctrl-C back to the system: the next one ends even a process that waits inside of a call."""
    if number == signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)


def say(text: str) -> None:
    """Say something inside of a signal's handler, where a stream may just be in use."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def leave_to_parent(worker: int = 0) -> None:
    """Have this process, which works for another, be ended by that one alone, or by its end.

    Ctrl-C, and what clusters send, reach all processes of a group; the one that they are for still needs the others to
    come to its own end. Call it at the start of a process, before it has threads.

    Args:
        worker: its number, which `torch.utils.data.DataLoader` gives.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        sent = signal.sigtimedwait({signal.SIGTERM}, SECONDS)
        if sent and sent.si_pid == parent:
            break
    os._exit(0)
