"""Damage: what is done about samples and shards that cannot be read, and the count of what became of all samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

ERRORS = 5
"""Messages of lost samples that a tally keeps, of the first ones."""


class LossError(ValueError):
    """More samples could not be read than may be lost."""


class ShardLostError(Exception):
    """What was read of a shard does not count: it is lost as a whole; says why."""


@dataclass(frozen=True)
class Damage:
    """What is done about samples and shards that cannot be read.

    A sample cannot be read if a member cannot, a modality is missing that must not be, its key was there before, or a
    codec cannot encode it or gives what cannot be stored. A shard is lost as a whole if its SHA-256 is not that of its
    manifest, its samples do not lie together, or it cannot be opened. One without a manifest that is cut off, or whose
    structure is damaged, is read up to there.
    """

    policy: Literal["fail", "skip_sample", "skip_shard"] = "fail"
    """fail: stop at the first; skip_sample: leave out what cannot be read; skip_shard: leave out every such shard."""
    max_lost: float = 0.001
    """Share of the samples that may be lost, 0 to below 1; beyond it all stops."""
    patience: float = 300.0
    """Seconds without a byte after which a shard that is no file here, but a URL or a command, is taken for failing."""

    def __post_init__(self) -> None:
        if self.policy not in ("fail", "skip_sample", "skip_shard"):
            raise ValueError(f"no policy {self.policy!r}; there are fail, skip_sample, skip_shard")
        if not 0 <= self.max_lost < 1:
            raise ValueError(f"max_lost={self.max_lost} is no share of samples; give a number from 0 to below 1")

    def lose(self, message: str, tally: Tally, cause: Exception | None = None) -> None:
        """A sample that was read, and is not to be used.

        Raises:
            ValueError: if nothing may be lost.
            ShardLostError: if its shard is to go with it.
        """
        if self.policy == "fail":
            raise ValueError(message) from cause
        if self.policy == "skip_shard":
            raise ShardLostError(message) from cause
        tally.lose(message)

    def check(self, tally: Tally, total: int | None = None) -> None:
        """Stop if too many were lost.

        Args:
            tally: of what was read so far.
            total: samples of the whole, if it is known.

        Raises:
            LossError: if more than the share `max_lost` was lost.
        """
        total = max(tally.read, total or 0)
        if tally.lost > self.max_lost * total:
            raise LossError(
                f"{tally.lost} of {total} samples could not be read, more than damage.max_lost={self.max_lost:g} "
                "allows: " + "; ".join(tally.errors)
            )


FAIL = Damage()


@dataclass
class Tally:
    """What became of the samples that were read.

    Attributes:
        read: number of samples in the shards.
        kept: how many of them were used.
        dropped: reason → how many were not wanted.
        lost: how many could not be read.
        errors: what was wrong with the first of those.
        shards: shards that were lost, as a whole or from some place on.
        uncounted: shards among those of which no manifest says how many samples they held: the rest of what could
            still be counted in them is in `lost`, and there may have been more.
        several: modality → how many of those kept have several of it, of which one is drawn at each use.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    errors: list[str] = field(default_factory=list)
    shards: int = 0
    uncounted: int = 0
    several: Counter[str] = field(default_factory=Counter)

    def lose(self, error: str, count: int = 1) -> None:
        """Count samples that were read, and cannot be used."""
        self.lost += count
        self.errors = [*self.errors, error][:ERRORS]

    def lose_rest(self, error: str, count: int, *, is_exact: bool) -> None:
        """Count what is left of a shard, which cannot be read."""
        self.read += count
        self.lose(error, count)
        self.shards += 1
        self.uncounted += not is_exact

    def add(self, other: Tally) -> None:
        """Take over another's counts."""
        self.read, self.kept, self.lost = self.read + other.read, self.kept + other.kept, self.lost + other.lost
        self.shards, self.uncounted = self.shards + other.shards, self.uncounted + other.uncounted
        self.dropped.update(other.dropped)
        self.several.update(other.several)
        self.errors = [*self.errors, *other.errors][:ERRORS]

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        row = asdict(self) | {"dropped": dict(sorted(self.dropped.items()))}
        del row["several"]
        return row | ({"several": dict(sorted(self.several.items()))} if self.several else {})

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Tally:
        """Back from a manifest."""
        counts = {"dropped": Counter(row["dropped"]), "several": Counter(row.get("several", {}))}
        return cls(**dict(row) | counts | {"errors": list(row["errors"])})

    def __str__(self) -> str:
        """For a person."""
        rows = [f"{self.kept} of {self.read} samples"]
        rows += [f"{count} with several {name}: one is drawn at each use" for name, count in self.several.items()]
        rows += [f"{count} dropped: {reason}" for reason, count in sorted(self.dropped.items())]
        return "\n  ".join(rows + ([self.loss] if self.errors else []))

    @property
    def loss(self) -> str:
        """What was lost, for a person."""
        least = "at least " if self.uncounted else ""
        shards = f" ({self.shards} shards cut short or left out)" if self.shards else ""
        return f"{least}{self.lost} lost{shards}: " + "; ".join(self.errors)
