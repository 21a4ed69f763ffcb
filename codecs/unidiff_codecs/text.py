"""Texts: CLIP's text states, narrowed; decoded by GPT-2."""

from __future__ import annotations

import json
import mimetypes
import re
import warnings
from abc import ABC
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from unidiff_codecs.clip import TextState
from unidiff_codecs.text_decoder import TextDecoder
from unidiff_codecs.text_file import decode
from unidiff_core import Codec, EmptyRaw, FrozenCodec, Stream
from unidiff_core.foundation.argument import check_sizes

TEXTS_AT_ONCE = 256
"""Texts that the networks see at a time: bounds memory, changes no result."""
LONGEST = 2**20
"""Bytes of a text that is read: tokenizers take long over much more, to keep a few dozen tokens."""


class RawTexts(Codec, ABC):
    """What codecs of texts share: how a text is read, written and shown."""

    extension: ClassVar[str] = "txt"
    widget = "text"

    def from_bytes(self, data: bytes) -> str:
        """UTF-8 → text, without surrounding blanks.

        Raises:
            EmptyRaw: if it has no text.
            ValueError: if it is not UTF-8.
        """
        return check_text(decoded(data)).strip()

    def to_bytes(self, raw: str) -> bytes:
        """Text → UTF-8."""
        return raw.encode("utf-8")

    def parse(self, text: str) -> str:
        """The literal text; or the content of a file whose path it is.

        What has no blank, and a slash or a usual file ending, looks like a path: where no such file is, that is said.

        Raises:
            ValueError: if it is empty, or the file is none of UTF-8 text.
        """
        looks_like_path = not re.search(r"\s", text.strip()) and ("/" in text or mimetypes.guess_type(text)[0])
        if looks_like_path and Path(text).expanduser().is_file():
            return str(super().parse(text))
        if looks_like_path:
            warnings.warn(f"no file {text}: taken as text", stacklevel=2)
        return check_text(text).strip()

    def save(self, raws: Sequence[str], folder: Path, *, first_index: int = 0) -> list[Path]:
        """Write ``texts.jsonl``, a line ``{"index": i, "text": …}`` each; keeps earlier lines."""
        return save_texts(raws, folder, first_index)

    def html(self, raw: str) -> str:
        """The text, escaped."""
        return f"<span>{escape(raw)}</span>"


class TextCodec(RawTexts, FrozenCodec):
    """Strings ⇄ stream ``states``: CLIP's text states through a linear layer, as GPT-2 reads them back.

    Stored and latent: ``states`` ``[b, length, width]``, after the linear layer.
    Source: UniDiffuser (arXiv 2303.06555) section 4 and its released code.

    Args:
        clip: folder or hub id of an open_clip model.
        text_decoder: folder or hub id of a `TextDecoder`.
        length: CLIP's context length, tokens with start and end. A longer caption is cut, with a warning.
        width: width of a state after the linear layer.
        beams: width of the beam search.
        max_new_tokens: GPT-2 tokens of a decoded text at most.

    Raises:
        ValueError: at first use, if a network is not what is declared here.
    """

    raw_type: ClassVar[type | None] = str
    licence: ClassVar[str] = "MIT (CLIP), AGPL-3.0 (the released text decoder)"
    sources: ClassVar[tuple[str, ...]] = (
        "CLIP ViT-L/14, arXiv 2103.00020, hf-hub:timm/vit_large_patch14_clip_224.openai",
        "UniDiffuser's text decoder, arXiv 2303.06555, converted from thu-ml/unidiffuser-v1",
    )
    weights: ClassVar[tuple[str, ...]] = ("clip", "text_decoder")

    def __init__(
        self,
        clip: str = "hf-hub:timm/vit_large_patch14_clip_224.openai",
        text_decoder: str = "weights/text_decoder",
        length: int = 77,
        width: int = 64,
        beams: int = 5,
        max_new_tokens: int = 67,
    ) -> None:
        super().__init__()
        check_sizes(length=length, width=width, beams=beams, max_new_tokens=max_new_tokens)
        self.clip, self.text_decoder = clip, text_decoder
        self.length, self.width = length, width
        self.beams, self.max_new_tokens = beams, max_new_tokens
        self._states: Any = None
        self._decoder: Any = None

    @property
    def streams(self) -> Mapping[str, Stream]:
        """``states``: a sequence."""
        return {"states": Stream.sequence(self.length, self.width)}

    @torch.no_grad()
    def encode(self, raws: Sequence[str]) -> dict[str, Tensor]:
        """Texts → ``states`` ``[b, length, width]``.

        Raises:
            ValueError: if a text is empty.
        """
        texts = [check_text(raw) for raw in raws]
        rows = [self._encode_some(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
        return {"states": torch.cat(rows) if rows else torch.empty(0, self.length, self.width)}

    @torch.no_grad()
    def encode_empty(self) -> dict[str, Tensor]:
        """The ``states`` of a caption without words: its start and its end."""
        return {"states": self._encode_some([""])}

    @torch.no_grad()
    def decode(self, latents: Mapping[str, Tensor]) -> list[str]:
        """``states`` → texts, without blanks before punctuation (`clean_up`)."""
        decoder = self._load_decoder()
        texts: list[str] = []
        for states in latents["states"].split(TEXTS_AT_ONCE) if len(latents["states"]) else ():
            texts += decoder.generate(self.place(states), beams=self.beams, max_new_tokens=self.max_new_tokens)
        return texts

    def mask(self, region: Any, raw: str | None = None) -> dict[str, Tensor]:
        """A word of the text, or several: from the first of them on, to the end.

        A state of CLIP's tells of its token and of all before it, so that what follows a word tells of it too. A
        mapping is in the stream's coordinates, a range of states.

        Raises:
            ValueError: if the text is not known, or the words do not stand in it.
        """
        if isinstance(region, Mapping):
            return super().mask(region, raw)
        first = spans_of(region, raw)[0][0]
        before = self._load_states().tokenizer.encode(str(raw)[:first])
        place = torch.arange(self.length) > len(before)  # after the start symbol
        return {"states": place[:, None].expand(self.length, self.width).clone()}

    def _encode_some(self, texts: list[str]) -> Tensor:
        network, decoder = self._load_states(), self._load_decoder()
        states: Tensor = network(network.tokenize(texts).to(self._anchor.device))
        return decoder.encode(states).float()

    def _load_states(self) -> Any:
        if self._states is None:
            network = TextState(self.clip)
            if network.length != self.length:
                raise ValueError(
                    f"the CLIP {self.clip} reads {network.length} tokens, but the codec declares length {self.length}"
                )
            self._states = self.adopt(network)
        return self._states

    def _load_decoder(self) -> Any:
        if self._decoder is None:
            decoder = TextDecoder.from_pretrained(self.text_decoder)
            found = decoder.prefix_length, decoder.prefix_width
            if found != (self.length, self.width):
                raise ValueError(
                    f"the text decoder {self.text_decoder} reads {found[0]} states of width {found[1]}, but the codec "
                    f"declares length {self.length} and width {self.width}"
                )
            self._decoder = self.adopt(decoder)
        return self._decoder


def spans_of(words: Any, raw: str | None) -> list[tuple[int, int]]:
    """Where words stand in a text, each time that they do: from and up to, in characters.

    Raises:
        ValueError: if the text is not known, or one of the words does not stand in it.
    """
    rows = [words] if isinstance(words, str) else words
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, str) and row.strip() for row in rows):
        raise ValueError(f"the region {words!r} of a text is a word of it, or a list of words")
    if raw is None:
        raise ValueError(f"where {words!r} stands in a text is known of a text, not of latents; give the text itself")
    found = [[match.span() for match in re.finditer(rf"(?<!\w){re.escape(row)}(?!\w)", raw)] for row in rows]
    for row, spans in zip(rows, found, strict=True):
        if not spans:
            raise ValueError(f"{row!r} does not stand in the text {raw!r}")
    return sorted(span for spans in found for span in spans)


def decoded(data: bytes) -> str:
    """UTF-8 → text; a byte-order mark goes.

    Raises:
        ValueError: if it is not UTF-8, or too long.
    """
    if len(data) > LONGEST:
        raise ValueError(f"a text of {len(data)} bytes, and {LONGEST} are read at most; cut it")
    return decode(data)


def check_text(raw: Any) -> str:
    """The text itself.

    Raises:
        EmptyRaw: if it has nothing but blanks.
        ValueError: if it is not a string.
    """
    if not isinstance(raw, str):
        raise ValueError(f"a text must be a string, not {type(raw).__name__} {raw!r}")
    if not raw.strip():
        raise EmptyRaw(f"empty caption {raw!r}: give at least one word, or leave the text out of the query")
    return raw


def save_texts(raws: Sequence[str], folder: Path, first_index: int) -> list[Path]:
    """Write ``texts.jsonl``, a line ``{"index": i, "text": …}`` each; keeps earlier lines."""
    path = folder / "texts.jsonl"
    # Not splitlines: a text may hold U+2028 and its like.
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")[:first_index] if path.is_file() else []
    rows = [{"index": first_index + i, "text": raw} for i, raw in enumerate(raws)]
    lines += [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [path]
