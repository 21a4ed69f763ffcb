"""Labels: names out of a list, as symbols. They decode by lookup; no network is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from unidiff_core.codec.codec import Codec, EmptyRaw, Raw
from unidiff_core.foundation.error import meant
from unidiff_core.foundation.stream import Stream

SHOWN = 12
"""Names that an error lists at most."""


class LabelCodec(Codec):
    """A name of a list, or several (a class, tags), ⇄ stream ``label``, of symbols; it needs no network.

    Stored and latent: ``label`` int64, ``[b, 1]``, the name's place in the list; of several names ``[b, n]``, for each
    of the n names 1 if the sample has it and 0 if not. For a process over symbols, such as `Masked`.

    A member of a shard, or a file, is the name as UTF-8 text; of several names one a line, and an empty one has none of
    them. A number that is no name is a place in the list, as other tools write classes.

    Args:
        names: what there is, all different. Their order is part of what is stored.
        several: whether a sample has any number of them, as a list in this order, in place of exactly one, a string.

    Raises:
        ValueError: if there are fewer than two names (one, of several), or one stands twice, or is no line of text.
    """

    licence: ClassVar[str] = "none needed: no weights"
    extension: ClassVar[str] = "cls"
    widget = "text"
    round_trip: ClassVar[float | None] = 0.0

    def __init__(self, names: list[str], several: bool = False) -> None:
        super().__init__()
        self.names, self.several = list(names), several
        if len(self.names) < (1 if several else 2):
            raise ValueError(f"a label is one of two names or more, not of {self.names}")
        for name in self.names:
            if not isinstance(name, str) or not name or name != name.strip() or "\n" in name:
                raise ValueError(
                    f"the name {name!r} is no line of text without blanks around it; quote what YAML takes for a "
                    'number or a truth value: "7", "yes"'
                )
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"the name {twice[0]!r} stands twice in the list")
        self._places = {name: i for i, name in enumerate(self.names)}

    @property
    def streams(self) -> Mapping[str, Stream]:
        """``label``: one symbol of as many as there are names; of several one of two for each name."""
        if self.several:
            return {"label": Stream.symbols(len(self.names), vocabulary=2)}
        return {"label": Stream.symbols(1, vocabulary=len(self.names))}

    def encode(self, raws: Sequence[Raw]) -> dict[str, Tensor]:
        """Names → ``label``.

        Raises:
            ValueError: if a name is not in the list; shows the nearest.
        """
        ids = torch.zeros(len(raws), *self.streams["label"].shape, dtype=torch.int64)
        for row, raw in zip(ids, raws, strict=True):
            if self.several:
                row[[self._place(name) for name in self._listed(raw)]] = 1
            else:
                row[0] = self._place(raw)
        return {"label": ids}

    def decode(self, latents: Mapping[str, Tensor]) -> list[Raw]:
        """``label`` → names."""
        rows = latents["label"].tolist()
        if self.several:
            return [[name for name, has in zip(self.names, row, strict=True) if has] for row in rows]
        return [self.names[place] for (place,) in rows]

    def from_bytes(self, data: bytes) -> Raw:
        """UTF-8 → name or names.

        Raises:
            EmptyRaw: if it has no name and there must be one.
            ValueError: if it is not UTF-8, or a name is not in the list.
        """
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"not a label in UTF-8: {error}") from error
        return self._read(text.splitlines() if self.several else [text])

    def to_bytes(self, raw: Raw) -> bytes:
        """Name → UTF-8; of several one a line."""
        return ("\n".join(self._listed(raw)) if self.several else str(raw)).encode()

    def parse(self, text: str) -> Raw:
        """The name itself; of several those between commas.

        Raises:
            ValueError: if one is not in the list; shows the nearest.
        """
        return self._read(text.split(",") if self.several else [text])

    def _read(self, lines: Sequence[str]) -> Raw:
        names = [self.names[self._place(line.strip(), numbers=True)] for line in lines if line.strip()]
        if self.several:
            return [name for name in self.names if name in names]
        if not names:
            raise EmptyRaw(f"an empty label; it is one of {self._known()}")
        return names[0]

    def _listed(self, raw: Raw) -> Sequence[str]:
        if isinstance(raw, str) or not isinstance(raw, Sequence):
            raise ValueError(f"of several labels a sample is a list of names, not {raw!r}")
        return raw

    def _place(self, name: Raw, *, numbers: bool = False) -> int:
        if isinstance(name, str) and name in self._places:
            return self._places[name]
        if numbers and name.isascii() and name.isdecimal() and int(name) < len(self.names):
            return int(name)
        guess = meant(name, self.names) if isinstance(name, str) else ""
        raise ValueError(f"{name!r} is no label of this codec, which knows {self._known()}{guess}")

    def _known(self) -> str:
        shown = ", ".join(self.names[:SHOWN])
        return shown if len(self.names) <= SHOWN else f"{shown} and {len(self.names) - SHOWN} more"
