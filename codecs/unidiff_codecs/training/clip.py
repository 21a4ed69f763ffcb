"""Training of CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiff_codecs.clip import CONFIG, STATISTICS, WEIGHTS, tokenize
from unidiff_codecs.training.augmentation import augmented
from unidiff_core import Batches, Columns, NetworkTraining, ShardData
from unidiff_core.foundation.argument import check_amounts

PIXEL_MEAN, PIXEL_STD = 0.5, 0.5


class ClipTraining(NetworkTraining):
    """An open_clip model by the contrastive loss (arXiv 2103.00020).

    Equal captions in a batch all count as matches: in a small language they are common.

    Args:
        model: arguments of `open_clip.CLIP`: ``embed_dim``, ``vision_cfg``, ``text_cfg``.
        augment: strength of the images' augmentation, 0..1.
        lr: peak learning rate.
        weight_decay: of AdamW.
    """

    def __init__(
        self, model: dict[str, Any], augment: float = 1.0, lr: float = 1e-3, weight_decay: float = 0.1
    ) -> None:
        super().__init__(lr, weight_decay)
        check_amounts(augment=augment)
        self.model, self.augment = model, augment
        self.network: Any = None
        self.tokenizer: Any = None
        self.tokens: dict[str, Tensor] = {}

    def configure_model(self) -> None:
        """Build the network."""
        if self.network is None:
            import open_clip

            self.network = open_clip.CLIP(**self.model)
            _initialise(self.network.visual)
            self.tokenizer = open_clip.SimpleTokenizer(context_length=self.network.context_length)

    def training_step(self, batch: Columns, batch_index: int) -> Tensor:
        """Contrastive loss in both directions."""
        images, texts, scale = self.network(augmented(_pixels(batch["image"]), self.augment), self._ids(batch["text"]))
        loss = _contrastive(scale * images @ texts.T, _matches(batch["text"]).to(images))
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Columns, batch_index: int) -> None:
        """Bound the temperature, as CLIP does."""
        self.network.logit_scale.data.clamp_(0, 4.6052)

    def validation_step(self, batch: Columns, batch_index: int) -> None:
        """Contrastive loss on held-out pairs."""
        images, texts, scale = self.network(_pixels(batch["image"]), self._ids(batch["text"]))
        loss = _contrastive(scale * images @ texts.T, _matches(batch["text"]).to(images))
        self.log("held_out_loss", loss, prog_bar=True, batch_size=len(images))

    @torch.no_grad()
    def export(self, folder: Path, data: ShardData) -> dict[str, float]:
        """Write open_clip's layout, and the mean and standard deviation of the training images' features."""
        from safetensors.torch import save_file

        assert data.training is not None and data.held_out is not None
        self.network.eval()
        preprocess = {"mean": [PIXEL_MEAN] * 3, "std": [PIXEL_STD] * 3, "interpolation": "bicubic"}
        config = {"model_cfg": self.model, "preprocess_cfg": preprocess}
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        weights = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(weights, str(folder / WEIGHTS))
        features = self._features(data.training)
        statistics = {"image_mean": features.mean(0), "image_std": features.std(0).clamp(min=1e-6)}
        save_file(statistics, str(folder / STATISTICS))
        captions = set(data.held_out.columns["text"])
        return {"median_rank": self._median_rank(data.held_out), "captions": float(len(captions))}

    def _median_rank(self, data: Batches) -> float:
        """Median over held-out images of how many held-out captions fit better than the image's own."""
        captions = sorted(set(data.columns["text"]))
        texts = self.network.encode_text(self._ids(captions), normalize=True)
        similarity = F.normalize(self._features(data), dim=-1) @ texts.T
        own = similarity.gather(1, torch.tensor([[captions.index(text)] for text in data.columns["text"]]))
        return float((similarity > own).sum(1).float().median())

    def _features(self, data: Batches) -> Tensor:
        return torch.cat([self.network.encode_image(_pixels(images)) for images in data.columns["image"].split(512)])

    def _ids(self, texts: list[str]) -> Tensor:
        """Token ids, each caption tokenized once."""
        for text in set(texts) - self.tokens.keys():
            self.tokens[text] = tokenize(self.tokenizer, [text], self.network.context_length)[0]
        return torch.stack([self.tokens[text] for text in texts]).to(self.device)


def _initialise(visual: nn.Module) -> None:
    """He's initialisation for a convolutional tower, residual branches included; open_clip begins them at zero."""
    for name, module in visual.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif name.endswith("bn3"):
            nn.init.ones_(module.weight)  # type: ignore[arg-type]


def _pixels(images: Tensor) -> Tensor:
    return (images.float() / 255 - PIXEL_MEAN) / PIXEL_STD


def _matches(texts: list[str]) -> Tensor:
    """``[b, b]``: 1 where two captions are equal, over the row's sum."""
    numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids = torch.tensor([numbers[text] for text in texts])
    equal = (ids[:, None] == ids).float()
    return equal / equal.sum(1, keepdim=True)


def _contrastive(logits: Tensor, matches: Tensor) -> Tensor:
    return (F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches)) / 2
