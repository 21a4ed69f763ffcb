"""Galleries: samples on a page, each a card of what was given and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from unidiff_core.codec.codec import Codec, Raw


@dataclass(frozen=True)
class Card:
    """A sample on a page: what was given, what came of it, and in what it is wrong; HTML by modality."""

    given: Mapping[str, Markup]
    solved: Mapping[str, Markup]
    faults: Sequence[str] = ()


def card(
    given: Mapping[str, Raw], solved: Mapping[str, Raw], codecs: Mapping[str, Codec], faults: Sequence[str] = ()
) -> Card:
    """Raw samples as a card.

    Args:
        given: modality → what was given.
        solved: modality → what was sampled.
        codecs: of both.
        faults: in what it is wrong.
    """
    above, below = ({name: shown(codecs[name], raw) for name, raw in side.items()} for side in (given, solved))
    return Card(above, below, faults)


def shown(codec: Codec, raw: Raw) -> Markup:
    """How a sample looks on a page: the codec's own HTML."""
    return Markup(codec.html(raw))
