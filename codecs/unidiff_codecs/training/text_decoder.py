"""Training of the text decoder: CLIP frozen, two linear layers and GPT-2 trained to give the caption back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unidiff_codecs.clip import TextState
from unidiff_codecs.text_decoder import IGNORED, TextDecoder, clean_up, read_tokenizer
from unidiff_codecs.training.data import CaptionData
from unidiff_core import Columns, NetworkTraining
from unidiff_core.codec.weights import locate
from unidiff_core.foundation.argument import check_amounts, check_sizes

END = "<|EOS|>"
"""The added symbol, last of the vocabulary."""
BEAMS = 5


class TextDecoderTraining(NetworkTraining):
    """GPT-2 that writes captions from CLIP's text states, and the linear layer between them: what `TextCodec` loads.

    The prefix carries no loss; the caption's tokens and the end token do.

    Args:
        clip: folder or hub id of the frozen open_clip model.
        width: width of what is diffused.
        gpt: arguments of `transformers.GPT2Config` to build from; or the folder or hub id of a pretrained GPT-2.
        vocabulary: symbols of the tokenizer that is trained on the captions; not used with a pretrained GPT-2.
        pretrained: folder of a text decoder to go on from, with other captions: to teach it words. What turns CLIP's
            states into latents stays as it is, so that a diffusion model trained on those latents goes on reading and
            writing them; `width`, `gpt` and `vocabulary` are then its own.
        noise: standard deviation of Gaussian noise on the standardised latents in training, so that the decoder
            bears with what a diffusion model gives it.
        lr: peak learning rate.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        clip: str,
        width: int = 64,
        gpt: dict[str, Any] | str = "hf-hub:openai-community/gpt2",
        vocabulary: int = 384,
        pretrained: str | None = None,
        noise: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, weight_decay)
        check_sizes(width=width, vocabulary=vocabulary)
        check_amounts(noise=noise)
        self.clip, self.width, self.gpt, self.vocabulary, self.noise = clip, width, gpt, vocabulary, noise
        self.pretrained = pretrained
        self.states: Any = None
        self.network: Any = None
        self.ids: dict[str, tuple[Tensor, Tensor]] = {}

    def configure_model(self) -> None:
        """Load CLIP; build the decoder, with a tokenizer made from the training captions if it has none."""
        if self.network is not None:
            return
        self.states = TextState(self.clip)
        if self.pretrained:
            self.network = self._continued(self.pretrained)
            return
        widths = {"state_width": self.states.width, "prefix_length": self.states.length, "prefix_width": self.width}
        self.network = self._pretrained(widths) if isinstance(self.gpt, str) else self._new(self.gpt, widths)

    def training_step(self, batch: Columns, batch_index: int) -> Tensor:
        """Cross-entropy of the caption after a noisy prefix."""
        clip_ids, ids = self._tokens(batch["text"])
        raw = self.network.encode_prefix(self._clip(clip_ids))
        self._track(raw.detach())
        latents = (raw - self.network.mean) / self.network.std
        loss: Tensor = self.network.loss(latents + self.noise * torch.randn_like(latents), ids)
        self.log("loss", loss, prog_bar=True, batch_size=len(latents))
        return loss

    def validation_step(self, batch: Columns, batch_index: int) -> None:
        """Share of a held-out caption's tokens that are predicted right, teacher-forced."""
        clip_ids, ids = self._tokens(batch["text"])
        logits = self.network.logits(self.network.encode(self._clip(clip_ids)), ids)
        right = (logits.argmax(-1) == ids)[ids != IGNORED].float().mean()
        self.log("token_accuracy", right, prog_bar=True, batch_size=len(ids))

    @torch.no_grad()
    def export(self, folder: Path, data: CaptionData) -> dict[str, float]:
        """Write config, safetensors and tokenizer; statistics are those of all training captions."""
        assert data.training is not None and data.held_out is not None
        self.network.eval()
        self._track(self._raw(sorted(set(data.training.columns["text"]))), share=1.0)
        self.network.save_pretrained(folder)
        texts = data.held_out.columns["text"]
        return {
            "exact": _share(self._decode(texts, 0.0), texts),
            "exact_with_noise_0.3": _share(self._decode(texts, 0.3), texts),
            "token_accuracy": float(self.trainer.callback_metrics.get("token_accuracy", torch.tensor(float("nan")))),
            "held_out_captions": float(len(texts)),
        }

    @torch.no_grad()
    def show(self, folder: Path, data: CaptionData) -> None:
        """``reconstructions.txt``: held-out captions and what is decoded from them, also with noise of 0.3."""
        assert data.held_out is not None
        texts = data.held_out.columns["text"][:: max(1, len(data.held_out.columns["text"]) // 12)]
        rows = zip(texts, self._decode(texts, 0.0), self._decode(texts, 0.3), strict=True)
        lines = [f"{text}\n  → {plain}\n  → {noisy}   (latents with noise 0.3)" for text, plain, noisy in rows]
        (folder / "reconstructions.txt").write_text("\n".join(lines) + "\n")
        print("\n".join(lines))

    def _continued(self, name: str) -> TextDecoder:
        network = TextDecoder.from_pretrained(name).requires_grad_(True).train()
        if (network.prefix_length, network.state_width) != (self.states.length, self.states.width):
            raise ValueError(f"the text decoder {name} was not made for the states of the CLIP {self.clip}")
        network.encode_prefix.requires_grad_(False)
        return network

    def _new(self, gpt: dict[str, Any], widths: dict[str, int]) -> TextDecoder:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = train_tokenizer(data.training.columns["text"], self.vocabulary)
        return TextDecoder(**widths, gpt={"vocab_size": len(tokenizer) + 1, **gpt}, tokenizer=tokenizer)

    def _pretrained(self, widths: dict[str, int]) -> TextDecoder:
        from transformers import GPT2LMHeadModel

        assert isinstance(self.gpt, str)
        folder = locate(self.gpt, ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json"))
        source = GPT2LMHeadModel.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
        source.resize_token_embeddings(source.config.vocab_size + 1)  # the end token
        names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function")
        gpt = {name: getattr(source.config, name) for name in names}
        network = TextDecoder(**widths, gpt=gpt, tokenizer=read_tokenizer(folder))
        network.transformer.load_state_dict(source.state_dict())
        return network

    def _track(self, raw: Tensor, share: float = 0.05) -> None:
        """Move the running statistics per channel towards those of `raw`; those of a pretrained decoder stay."""
        if self.pretrained:
            return
        raw = raw.to(self.network.mean)  # under autocast it is of another dtype
        self.network.mean.lerp_(raw.mean((0, 1)), share)
        self.network.std.lerp_(raw.std((0, 1)).clamp(min=1e-6), share)

    def _clip(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            states: Tensor = self.states(ids)
        return states

    def _raw(self, texts: list[str]) -> Tensor:
        parts = [texts[i : i + 256] for i in range(0, len(texts), 256)]
        return torch.cat([self.network.encode_prefix(self._clip(self._tokens(part)[0])) for part in parts])

    def _decode(self, texts: list[str], noise: float) -> list[str]:
        latents = (self._raw(texts) - self.network.mean) / self.network.std
        generator = torch.Generator().manual_seed(0)
        latents = latents + noise * torch.randn(latents.shape, generator=generator).to(latents)
        decoded: list[str] = self.network.generate(latents, beams=BEAMS, max_new_tokens=67)
        return decoded

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP's and GPT-2's token ids, each caption tokenized once."""
        for text in set(texts) - self.ids.keys():
            self.ids[text] = self.states.tokenize([text])[0], self.network.tokenize([text])[0]
        rows = [self.ids[text] for text in texts]
        gpt = torch.nn.utils.rnn.pad_sequence([row[1] for row in rows], batch_first=True, padding_value=IGNORED)
        return torch.stack([row[0] for row in rows]).to(self.device), gpt.to(self.device)


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE for `texts`; with all 256 bytes, so it can spell any other text too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _share(decoded: list[str], texts: list[str]) -> float:
    texts = [clean_up(text) for text in texts]  # as what is decoded is
    return sum(one == other for one, other in zip(decoded, texts, strict=True)) / len(texts)
