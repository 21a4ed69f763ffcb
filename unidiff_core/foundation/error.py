"""How errors are put into words for a person."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def reason(error: BaseException) -> str:
    """An exception in a few words: its message, and its type unless it is a ValueError, which is written for users."""
    kind, text = type(error).__name__, str(error)
    return text if text and isinstance(error, ValueError) else f"{kind}: {text}" if text else kind


def sentence(text: str) -> str:
    """A text with the one stop that it ends with."""
    text = text.strip().rstrip(".")
    return text if text.endswith("?") else f"{text}."


def counted(number: int, noun: str, several: str = "") -> str:
    """A number with what it counts: ``1 file``, ``2 files``; `several` is the plural, if it is not formed by an s."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def meant(word: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6, then: str = "") -> str:
    """``; did you mean …?`` after an error about an unknown word; not if no known one is near.

    Args:
        word: that is unknown.
        known: those that it might be.
        most: how many are offered at most.
        cutoff: how near they have to be, from 0 to 1 (equal), by `difflib`.
        then: a clause that follows in any case, ``known: a, b``.
    """
    names = {name.lower(): name for name in known}
    close = [names[row] for row in difflib.get_close_matches(word.lower(), names, n=most, cutoff=cutoff)]
    guess = f"; did you mean {' or '.join(close)}?" if close else ""
    if not then:
        return guess
    return f"{guess} {then[0].upper()}{then[1:]}" if guess else f"; {then}"
