"""What two configurations differ in, in words."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = object()
_PLAIN = (bool, int, float, str, type(None))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name → ``was 4, is 8``, for each value that two nested mappings do not share.

    Objects are ``{class_path: …, init_args: {…}}``. An argument that `before` does not have, although it is of the same
    class, counts as the class's default: the version that recorded it did not know the argument yet.

    Args:
        before: plain data, as it was recorded; no class that it names is looked for.
        now: plain data; its classes can be imported.
    """
    old, new = dict(_flat(_filled(before, now))), dict(_flat(now))
    rows = [(name, old.get(name, _ABSENT), new.get(name, _ABSENT)) for name in {**old, **new}]
    return {name: f"was {_said(was)}, is {_said(is_)}" for name, was, is_ in rows if was != is_}


def told(found: Mapping[str, str], most: int = 3) -> str:
    """The first few of `differences`, in a line."""
    rows = [f"{name} {text}" for name, text in found.items()]
    return "; ".join(rows[:most]) + (f"; and {len(rows) - most} more" if rows[most:] else "")


def _filled(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    filled = {
        name: _filled(value, now[name]) if isinstance(value, Mapping) and isinstance(now.get(name), Mapping) else value
        for name, value in before.items()
    }
    if "class_path" in now and before.get("class_path") == now["class_path"]:
        arguments = now.get("init_args") or {}
        filled["init_args"] = _defaults(now["class_path"], arguments) | dict(filled.get("init_args") or {})
    return filled


def _defaults(path: str, names: Mapping[str, Any]) -> dict[str, Any]:
    module, _, name = path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    rows = {name: parameters[name].default for name in names if name in parameters}
    return {name: value for name, value in rows.items() if isinstance(value, _PLAIN)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, prefix if name == "init_args" else f"{prefix}{name}.")
        elif name != "init_args":
            yield f"{prefix}{name}", value


def _said(value: Any) -> str:
    return "not given" if value is _ABSENT else repr(value)
