"""Filters: which samples of a shard are worth keeping, by the numbers that came with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unidiff_core.data.shard import Members


@dataclass(frozen=True)
class Filter:
    """Keeps the samples of which a number is within bounds, `at_least` ≤ number < `below`.

    The number is a field of the sample's JSON member, as img2dataset writes it: ``width``, ``original_height``,
    ``pwatermark``, ``punsafe``, ``similarity``, ``AESTHETIC_SCORE``.

    Attributes:
        field: its name.
        at_least: lower bound, itself kept.
        below: upper bound, itself dropped.
        absent: what to do with a sample that has no such number, or null or NaN.
        member: ending of the JSON member.
    """

    field: str
    at_least: float | None = None
    below: float | None = None
    absent: Literal["error", "drop", "keep"] = "error"
    member: str = "json"

    def __post_init__(self) -> None:
        if self.at_least is None and self.below is None:
            raise ValueError(f"the filter on {self.field!r} has no bound; give at_least or below")

    def reason(self, sample: Members) -> str | None:
        """Why a sample is dropped, in the same words for all of a kind; None if it is kept.

        Raises:
            ValueError: if the number is absent and that is an error, or the member is no JSON object.
        """
        fields = self._fields(sample)
        number = _number(fields.get(self.field))
        if number is None:
            return self._reason_of_absence(fields)
        if self.at_least is not None and number < self.at_least:
            return f"{self.field} < {self.at_least:g}"
        if self.below is not None and number >= self.below:
            return f"{self.field} >= {self.below:g}"
        return None

    def _fields(self, sample: Members) -> Mapping[str, Any]:
        if self.member not in sample:
            return {}
        try:
            fields = json.loads(sample[self.member])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"member .{self.member}: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"member .{self.member} is no JSON object")
        return fields

    def _reason_of_absence(self, fields: Mapping[str, Any]) -> str | None:
        if self.absent == "error":
            known = ", ".join(sorted(fields)) or "no fields"
            raise ValueError(
                f"its .{self.member} has no number {self.field!r} to filter by ({known}); "
                "write `absent: drop` or `absent: keep` in the filter if that may be"
            )
        return f"no {self.field}" if self.absent == "drop" else None


def _number(value: Any) -> float | None:
    """A finite number, also one written as text."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
