"""Texts as symbols: the ids of any tokenizer, padded to one length. They decode by lookup."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from unidiff_codecs.text import RawTexts, check_text, spans_of
from unidiff_core import Stream
from unidiff_core.codec.weights import locate, read_config, require
from unidiff_core.foundation.error import counted

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"


class TokensCodec(RawTexts):
    """Strings ⇄ stream ``ids``: a tokenizer's ids, and its padding up to a fixed length.

    Stored: ``ids`` int32 ``[b, length]``; latent the same in int64. For a process over symbols, such as `Masked`: what
    is sampled are tokens, so that no text decoder is needed. The padding is a symbol like any other: it says where the
    text ends. A text decodes from what stands before the first of it.

    A tokenizer is its ``tokenizer.json``, as the tokenizers library and every fast tokenizer of transformers write it;
    no class is taken from the folder. Its padding is what it names as that, there or in ``tokenizer_config.json``, and
    one more symbol if it names none. No other symbols are added around a text.

    Args:
        tokenizer: folder or hub id of a tokenizer: one of Hugging Face's, or what `TokensTraining` exported.
        vocabulary: number of its symbols with the padding, ids 0 to one less.
        length: tokens of a text.
        strict: whether a text with more tokens, or with words that the tokenizer does not know, is an error; if not it
            is cut, or keeps the tokenizer's symbol for what is unknown, and a warning counts such texts.

    Raises:
        ValueError: at first use, if the tokenizer is not what is declared here.
    """

    raw_type: ClassVar[type | None] = str
    licence: ClassVar[str] = "the tokenizer's"
    weights: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(self, tokenizer: str, vocabulary: int, length: int = 16, strict: bool = True) -> None:
        super().__init__()
        if length < 1 or vocabulary < 2:
            raise ValueError(f"tokens need a length of 1 and a vocabulary of 2 at least, not {length} and {vocabulary}")
        self.tokenizer, self.vocabulary, self.length, self.strict = tokenizer, vocabulary, length, strict
        self._tokenizer: Tokens | None = None

    @property
    def streams(self) -> Mapping[str, Stream]:
        """``ids``: a row of symbols."""
        return {"ids": Stream.symbols(self.length, vocabulary=self.vocabulary)}

    def encode(self, raws: Sequence[str]) -> dict[str, Tensor]:
        """Texts → ``ids`` int32 ``[b, length]``.

        Raises:
            ValueError: if a text is empty; if `strict`, also if it is too long or has unknown words.
        """
        tokenizer = self._load()
        ids = torch.full((len(raws), self.length), tokenizer.padding, dtype=torch.int32)
        rows = tokenizer.encode([check_text(raw) for raw in raws])
        for i, (raw, (tokens, unknown)) in enumerate(zip(raws, rows, strict=True)):
            if self.strict:
                self._check(raw, len(tokens), unknown)
            kept = torch.tensor(tokens[: self.length], dtype=torch.int32)
            ids[i, : len(kept)] = kept
        self._count(rows)
        return {"ids": ids}

    def encode_empty(self) -> dict[str, Tensor]:
        """The ``ids`` of a caption without words: padding alone."""
        return {"ids": torch.full((1, self.length), self._load().padding, dtype=torch.int32)}

    def latent(self, stored: Mapping[str, Tensor], draw: Any) -> dict[str, Tensor]:
        """The ids, in int64."""
        return {"ids": stored["ids"].long()}

    def decode(self, latents: Mapping[str, Tensor]) -> list[str]:
        """``ids`` → texts; one that is padding from the start is empty."""
        return [self._load().decode(row) for row in latents["ids"].tolist()]

    def mask(self, region: Any, raw: str | None = None) -> dict[str, Tensor]:
        """The tokens of a word of the text, or of several; as many as they are. A mapping is a range of tokens.

        Raises:
            ValueError: if the text is not known, or the words do not stand in it.
        """
        if isinstance(region, Mapping):
            return super().mask(region, raw)
        spans = spans_of(region, raw)
        inside = torch.zeros(self.length, dtype=torch.bool)
        for i, (a, b) in enumerate(self._load().spans(str(raw))[: self.length]):
            inside[i] = any(a < end and start < b for start, end in spans)
        if not inside.any():
            raise ValueError(f"{region!r} stands after the {self.length} tokens that are read of {raw!r}")
        return {"ids": inside}

    def _check(self, raw: str, num: int, unknown: Sequence[str]) -> None:
        if num > self.length:
            raise ValueError(
                f"{raw!r} has {num} tokens, more than the codec's length {self.length}; shorten it, set another "
                "length (then encode and train anew), or strict: false to cut"
            )
        if unknown:
            raise ValueError(
                f"{raw!r} has words that the tokenizer {self.tokenizer} does not know: {', '.join(unknown)}; leave "
                "them out, or set strict: false to keep its symbol for them"
            )

    def _count(self, rows: Sequence[tuple[Sequence[int], Sequence[str]]]) -> None:
        num_cut = sum(len(tokens) > self.length for tokens, _ in rows)
        unknown = [words for _, words in rows if words]
        if num_cut or unknown:
            several = list(dict.fromkeys(word for words in unknown for word in words))
            named = f" ({', '.join(several[:5])}{', …' * (len(several) > 5)})" if several else ""
            warnings.warn(
                f"of {counted(len(rows), 'text')} {num_cut} had more than {self.length} tokens and were cut, and "
                f"{len(unknown)} had words that the tokenizer does not know{named}",
                stacklevel=3,
            )

    def _load(self) -> Tokens:
        if self._tokenizer is None:
            tokenizer = Tokens.read(self.tokenizer)
            if tokenizer.size != self.vocabulary:
                raise ValueError(
                    f"the tokenizer {self.tokenizer} has {tokenizer.size} symbols with its padding, but the codec "
                    f"declares a vocabulary of {self.vocabulary}; write vocabulary: {tokenizer.size}"
                )
            self._tokenizer = tokenizer
        return self._tokenizer


class Tokens:
    """A tokenizer of the tokenizers library, and which of its symbols is the padding.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; its own padding and truncation are switched off.
        padding: id of the padding; one symbol more if not given.
    """

    def __init__(self, tokenizer: Any, padding: int | None = None) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.padding = highest + 1 if padding is None else padding
        self.size = max(highest, self.padding) + 1
        self.unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")

    @classmethod
    def read(cls, name: str) -> Tokens:
        """From a folder or a hub id.

        Raises:
            ValueError: if there is no ``tokenizer.json``, or it is none; says what to do.
        """
        from tokenizers import Tokenizer

        folder = locate(name, (TOKENIZER, SETTINGS))
        try:
            require(folder, TOKENIZER)
        except ValueError as error:
            raise ValueError(
                f"{error}. transformers writes it: AutoTokenizer.from_pretrained(…).save_pretrained(folder)"
            ) from error
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(f"{folder / TOKENIZER} is not a tokenizer: {error}; get it again") from error
        if tokenizer.padding:
            return cls(tokenizer, int(tokenizer.padding["pad_id"]))
        named = read_config(folder / SETTINGS).get("pad_token") if (folder / SETTINGS).is_file() else None
        token = named.get("content") if isinstance(named, dict) else named
        return cls(tokenizer, None if token is None else tokenizer.token_to_id(str(token)))

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[str]]]:
        """Of each text the ids, and the words that the tokenizer does not know."""
        rows = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            (row.ids, [text[a:b] for token, (a, b) in zip(row.ids, row.offsets, strict=True) if token == self.unknown])
            for text, row in zip(texts, rows, strict=True)
        ]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token stands in a text: from and up to, in characters."""
        return [(int(a), int(b)) for a, b in self.tokenizer.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids up to the first padding → text; special symbols of the tokenizer's own are shown as they are."""
        kept = ids[: ids.index(self.padding)] if self.padding in ids else ids
        return str(self.tokenizer.decode(list(kept), skip_special_tokens=False)).strip()
