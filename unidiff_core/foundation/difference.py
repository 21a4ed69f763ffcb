"""What two configurations differ in, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = object()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name → ``was 4, is 8``, for each value that two nested mappings do not share.

    Args:
        before: plain data.
        now: plain data.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    rows = [(name, old.get(name, _ABSENT), new.get(name, _ABSENT)) for name in {**old, **new}]
    return {name: f"was {_said(was)}, is {_said(is_)}" for name, was, is_ in rows if was != is_}


def told(found: Mapping[str, str], most: int = 3) -> str:
    """The first few of `differences`, in a line."""
    rows = [f"{name} {text}" for name, text in found.items()]
    return "; ".join(rows[:most]) + (f"; and {len(rows) - most} more" if rows[most:] else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _said(value: Any) -> str:
    return "not given" if value is _ABSENT else repr(value)
