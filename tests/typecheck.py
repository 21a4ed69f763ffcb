"""Checks the shapes in annotations at run time, in the tests only: jaxtyping's import hook calls `checked`.

Only functions whose annotations name shapes are checked (others have names that exist for the type checker alone), and
only their first calls: a sampling loop makes a hundred thousand of the same.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from beartype import BeartypeConf, beartype

CALLS = 50
_SHAPED = re.compile(r"\b(Float|Float32|Float64|Int64|UInt8|Shaped|Bool)\[|\bX\b")
# An int is a float, as everywhere in Python. Nothing is picked at random: the program's own draws are not to move.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True, is_random=False))


def checked(function: Any) -> Any:
    """A function whose first calls are checked, if a shape stands in its annotations."""
    annotations = getattr(function, "__annotations__", {})
    if isinstance(function, type) or not any(_SHAPED.search(str(row)) for row in annotations.values()):
        return function
    strict, calls = _check(function), 0

    @functools.wraps(function)
    def some(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (strict if calls <= CALLS else function)(*args, **kwargs)

    return some
