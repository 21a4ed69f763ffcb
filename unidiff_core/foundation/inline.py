"""YAML on one line, as a person types it: what is wrong with it is said in a clause, with the place."""

from __future__ import annotations

from typing import Any

import yaml


def read_inline(text: str, what: str) -> Any:
    """YAML → plain data.

    Args:
        text: as it was typed.
        what: it is, for the error: ``--spec``.

    Raises:
        ValueError: if it is none; says what the parser met, and at which character.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} {text!r} is not YAML: {problem_of(error)}") from error


def problem_of(error: yaml.YAMLError) -> str:
    """What YAML's parser says, without its picture of the place, which needs lines of its own."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    line = f"line {mark.line + 1}, " if mark.line else ""
    return f"{line}character {mark.column + 1}: {problem}".replace("'<stream end>'", "the end")
