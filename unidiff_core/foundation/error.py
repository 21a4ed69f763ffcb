"""How errors are put into words for a person."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """An exception in a few words: its message, and its type unless it is a ValueError, which is written for users."""
    kind, text = type(error).__name__, str(error)
    return text if text and isinstance(error, ValueError) else f"{kind}: {text}" if text else kind


def sentence(text: str) -> str:
    """A text with the one stop that it ends with."""
    text = text.strip().rstrip(".")
    return text if text.endswith("?") else f"{text}."
