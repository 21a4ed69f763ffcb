"""A tokenizer for `TokensCodec`, made from the captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from unidiff_codecs.tokens import TOKENIZER, Tokens
from unidiff_codecs.training.data import CaptionData
from unidiff_core import OnePass

PADDING, UNKNOWN = "[PAD]", "[UNK]"

Kind = Literal["words", "bpe"]


class TokensTraining(OnePass):
    """Makes a tokenizer of the training captions, with a padding of its own, id 0.

    Args:
        kind: ``words``: what stands between blanks; what is not among the captions is unknown. ``bpe``: pieces of bytes
            (byte-level BPE), which spell any text.
        vocabulary: symbols at most, with the padding; of ``bpe`` at least 257. The most frequent are kept.
    """

    def __init__(self, kind: Kind = "words", vocabulary: int = 8192) -> None:
        super().__init__()
        least = {"words": 3, "bpe": 257}
        if kind not in get_args(Kind) or vocabulary < least[kind]:
            known = " or ".join(f"{name} with a vocabulary of {num} or more" for name, num in least.items())
            raise ValueError(f"a tokenizer is of {known}, not {kind!r} with {vocabulary}")
        self.kind, self.vocabulary = kind, vocabulary

    def export(self, folder: Path, data: CaptionData) -> dict[str, float]:
        """Write ``tokenizer.json``; measured: symbols, tokens of the longest text, held-out captions that come back."""
        assert data.training is not None and data.held_out is not None
        texts, held_out = (sorted(set(part.columns["text"])) for part in (data.training, data.held_out))
        train_tokens(texts, self.kind, self.vocabulary).save(str(folder / TOKENIZER))
        tokens = Tokens.read(str(folder))
        rows = tokens.encode(texts + held_out)
        back = [tokens.decode(ids) for ids, _ in rows[len(texts) :]]
        return {
            "vocabulary": float(tokens.size),
            "longest": float(max(len(ids) for ids, _ in rows)),
            "exact": sum(a == b for a, b in zip(back, held_out, strict=True)) / len(held_out),
            "held_out_captions": float(len(held_out)),
        }


def train_tokens(texts: Sequence[str], kind: Kind, vocabulary: int) -> Any:
    """A `tokenizers.Tokenizer` of texts, the same for the same set of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trainer: Any
    if kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocabulary, special_tokens=[PADDING, UNKNOWN], show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PADDING],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(PADDING), pad_token=PADDING)
    return tokenizer
