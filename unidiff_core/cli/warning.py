"""What a person sees of warnings and logs: none of what Lightning and torch advise other programs."""

from __future__ import annotations

import logging
import warnings

ADVICE = (
    ".*exists and is not empty.*",
    ".*dirpath has changed.*",  # a run's folder was moved, or begins from another's
    ".*does not have many workers.*",
    ".*args parameter is intended.*",
    ".*LeafSpec.*",
    ".*across ranks is zero.*",
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen networks, on purpose
)
"""Patterns of messages that are not for this program's user."""
_format = warnings.formatwarning


def tidy_warnings() -> None:
    """Silence `ADVICE`, and write a `UserWarning` as one line without the line of code that gave it."""
    for pattern in ADVICE:
        warnings.filterwarnings("ignore", pattern)
    warnings.formatwarning = _format_warning


def quieten_lightning() -> None:
    """Silence what Lightning logs of itself, but for a profiler's table, which its user asked for.

    After its import, where it sets its own level.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if category is UserWarning:
        return f"unidiffuser: {message}\n"
    return _format(message, category, filename, lineno, line)
