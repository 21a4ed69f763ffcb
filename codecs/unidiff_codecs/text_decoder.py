"""The text decoder: two linear layers around the diffused states, and a GPT-2 that reads them as a prefix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiff_core.codec.weights import locate, read_config, require

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
_BLANKS = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)
"""Text with a blank too many → without it, in the order in which transformers 4 replaced them."""
IGNORED = -100
"""Label of a token that carries no loss (torch's default)."""


class TextDecoder(nn.Module):
    """Linear `state_width` → `prefix_width` (what is diffused), and back into GPT-2 (UniDiffuser, released code).

    Keys are named as in diffusers' ``UniDiffuserTextDecoder``. ``mean`` and ``std`` standardise the diffused states;
    they are 0 and 1 in released weights.

    Args:
        state_width: width of CLIP's text states.
        prefix_length: number of states.
        prefix_width: width of what is diffused.
        gpt: arguments of `transformers.GPT2Config`; the last symbol of its vocabulary is the added end token.
        tokenizer: of the captions; a `transformers.PreTrainedTokenizerFast`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, state_width: int, prefix_length: int, prefix_width: int, gpt: dict[str, Any], tokenizer: Any
    ) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.state_width, self.prefix_length, self.prefix_width = state_width, prefix_length, prefix_width
        self.gpt, self.tokenizer = gpt, tokenizer
        end = int(gpt.get("vocab_size", 50258)) - 1
        config = GPT2Config(**{"vocab_size": end + 1, "bos_token_id": end, "eos_token_id": end, **gpt})
        self.transformer: Any = GPT2LMHeadModel(config)
        self.encode_prefix = nn.Linear(state_width, prefix_width)
        self.decode_prefix = nn.Linear(prefix_width, self.transformer.config.n_embd)
        self.register_buffer("mean", torch.zeros(prefix_width))
        self.register_buffer("std", torch.ones(prefix_width))

    @property
    def end(self) -> int:
        """Id of the end token."""
        return int(self.transformer.config.vocab_size) - 1

    def encode(self, states: Tensor) -> Tensor:
        """CLIP's states ``[b, prefix_length, state_width]`` → what is diffused ``[b, prefix_length, prefix_width]``."""
        return (self.encode_prefix(states) - self.mean) / self.std

    def prefix(self, latents: Tensor) -> Tensor:
        """What is diffused → GPT-2's prefix ``[b, prefix_length, n_embd]``."""
        prefix: Tensor = self.decode_prefix(latents * self.std + self.mean)
        return prefix

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts → ids with the end token, ``[b, longest]``; `IGNORED` after it."""
        rows = [torch.tensor([*self.tokenizer.encode(text), self.end]) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)

    def logits(self, latents: Tensor, ids: Tensor) -> Tensor:
        """Teacher-forced predictions of `ids` ``[b, n]`` after the prefix: ``[b, n, vocabulary]``."""
        known = self.transformer.transformer.wte(ids.clamp(min=0))
        embeds = torch.cat([self.prefix(latents), known], dim=1)
        # The last prefix position predicts the first token; the prefix itself is never a label.
        output: Tensor = self.transformer(inputs_embeds=embeds).logits[:, self.prefix_length - 1 : -1]
        return output

    def loss(self, latents: Tensor, ids: Tensor) -> Tensor:
        """Mean cross-entropy of the caption's tokens."""
        return F.cross_entropy(self.logits(latents, ids).flatten(0, 1), ids.flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def generate(self, latents: Tensor, *, beams: int, max_new_tokens: int) -> list[str]:
        """What is diffused → texts, by beam search with cached keys and values, cleaned up."""
        room = self.transformer.config.n_positions - self.prefix_length
        prefix = self.prefix(latents)
        ids = self.transformer.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device),
            num_beams=beams,
            do_sample=False,
            use_cache=True,
            max_new_tokens=min(max_new_tokens, room),
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        return [self._text(row) for row in ids.tolist()]

    def _text(self, ids: list[int]) -> str:
        kept = ids[: ids.index(self.end)] if self.end in ids else ids
        return clean_up(str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False))).strip()

    def save_pretrained(self, folder: Path) -> None:
        """Write config, safetensors and tokenizer into an existing folder."""
        from safetensors.torch import save_model

        widths = {name: getattr(self, name) for name in ("state_width", "prefix_length", "prefix_width")}
        (folder / CONFIG).write_text(json.dumps({**widths, "gpt": self.gpt}, indent=1) + "\n")
        save_model(self, str(folder / WEIGHTS))
        self.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))

    @classmethod
    def from_pretrained(cls, name: str) -> TextDecoder:
        """From a folder that `save_pretrained` wrote, or a hub id of one.

        Raises:
            ValueError: if files are absent or the weights do not fit the config; lists the keys.
        """
        folder = locate(name, (CONFIG, WEIGHTS, TOKENIZER))
        require(folder, CONFIG, WEIGHTS, TOKENIZER)
        config = read_config(folder / CONFIG)
        known = ("state_width", "prefix_length", "prefix_width", "gpt")
        if set(config) != set(known):
            raise ValueError(f"{folder / CONFIG} is not a text decoder's: it needs {known}, and has {tuple(config)}")
        decoder = cls(**config, tokenizer=read_tokenizer(folder))
        _load(decoder, folder / WEIGHTS)
        return decoder.eval().requires_grad_(False)


def clean_up(text: str) -> str:
    """A decoded text without the blanks before punctuation and contractions that captions of the web are written with.

    The released code decodes with transformers 4, which did so by default; 5 refuses it for byte-level tokenizers.
    """
    for blank, plain in _BLANKS:
        text = text.replace(blank, plain)
    return text


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder's ``tokenizer.json``. Its class is fixed here and never taken from the folder.

    Raises:
        ValueError: if the file is no tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / TOKENIZER))
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"{folder / TOKENIZER} is not a tokenizer: {error}; get it again") from error


def _load(decoder: TextDecoder, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        missing, unexpected = load_model(decoder, str(path), strict=False)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not fit its config: {error}") from error
    absent = sorted(set(missing) - {"mean", "std"})
    if absent or unexpected:
        raise ValueError(f"{path} does not fit its config: missing {absent}, unexpected {sorted(unexpected)}")
