"""A source: where raw samples come from when a recipe makes its own shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from unidiff_core.data.shard import Members


class Source(ABC):
    """Raw samples by split, in the webdataset convention. `unidiffuser shards` writes them."""

    @property
    @abstractmethod
    def splits(self) -> dict[str, int]:
        """Split name → number of samples."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that it reads. What is made of them is made anew when they change, and never written over them."""
        return ()

    @abstractmethod
    def samples(self, split: str) -> Iterator[Members]:
        """The samples of one split, always the same and in the same order.

        Each is ``{"__key__": name, "png": bytes, "txt": bytes, "json": labels as JSON bytes, …}``: a member per
        modality that the sample has, and under ``json`` the labels that are known of it, ``{"digit": "7", …}``. A name
        has no dot, for the ending begins there.
        """
