"""Arguments that a user's Python gives: refused by name, with the value and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from unidiff_core.foundation.error import meant


def check_whole(name: str, value: Any, *, at_least: int | None = None) -> None:
    """Check that an argument is a whole number.

    Raises:
        ValueError: if it is another kind of thing, or too small; names argument, value and what is allowed.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or (at_least is not None and value < at_least):
        wanted = f"{name} is a whole number" + ("" if at_least is None else f", at least {at_least}")
        raise ValueError(f"{wanted}, not {value!r}")


def check_number(name: str, value: Any, *, above: float | None = None) -> None:
    """Check that an argument is a finite number.

    Raises:
        ValueError: if it is not, or too small; names argument, value and what is allowed.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (above is not None and not value > above):
        wanted = f"{name} is a finite number" + ("" if above is None else f" above {above:g}")
        raise ValueError(f"{wanted}, not {value!r}")


def check_share(name: str, value: Any) -> None:
    """Check that an argument is a number from 0 to 1.

    Raises:
        ValueError: if it is not; names argument and value.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} is a number from 0 to 1, not {value!r}")


def check_sizes(**sizes: Any) -> None:
    """Check arguments that are whole numbers of at least 1, or not given.

    Raises:
        ValueError: if one is not; names argument and value.
    """
    for name, value in sizes.items():
        if value is not None:
            check_whole(name, value, at_least=1)


def check_amounts(**amounts: Any) -> None:
    """Check arguments that are finite numbers, not below 0.

    Raises:
        ValueError: if one is not; names argument and value.
    """
    for name, value in amounts.items():
        check_number(name, value)
        if value < 0:
            raise ValueError(f"{name} is not below 0: {value!r}")


def check_shares(**shares: Any) -> None:
    """Check arguments that are shares, from 0 to below 1.

    Raises:
        ValueError: if one is not; names argument and value.
    """
    for name, value in shares.items():
        check_number(name, value)
        if not 0 <= value < 1:
            raise ValueError(f"{name} is a share, from 0 to below 1, not {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Check that an argument is True or False: any text would count as True.

    Raises:
        ValueError: if it is not; names argument and value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False, not {value!r}")


def check_mapping(name: str, value: Any, of: str) -> None:
    """Check that an argument is a mapping.

    Args:
        name: of the argument.
        value: of it.
        of: from what to what.

    Raises:
        ValueError: if it is not; names argument and value.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is a mapping, {of}, not {value!r}")


def check_known(names: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Check that arguments given by name are ones that there are.

    Args:
        names: given.
        known: that there are.
        owner: who takes them.

    Raises:
        TypeError: names the first that there is not, and what was meant.
    """
    known = list(known)
    for name in names:
        if name not in known:
            rest = meant(name, known, then=f"it takes {', '.join(known)}")
            raise TypeError(f"{owner} takes no {name!r}{rest}")
