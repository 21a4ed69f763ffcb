"""CLIP by open_clip: loading, tokenizing, and the two features that UniDiffuser takes from it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unidiff_core.codec.weights import locate, read_config, require

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
STATISTICS = "statistics.safetensors"
FETCHING = ("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "timm_model_pretrained")
"""What names something on a hub, or asks for weights from there."""


def locate_clip(name: str) -> Path:
    """Folder of a CLIP model in open_clip's layout.

    Raises:
        ValueError: if there is none, or if its text tower would be fetched from elsewhere.
    """
    folder = locate(name, (CONFIG, WEIGHTS, STATISTICS))
    require(folder, CONFIG, WEIGHTS, *([STATISTICS] if (folder / STATISTICS).is_file() else []))
    config = read_config(folder / CONFIG)
    model = config.get("model_cfg", config)
    if not isinstance(model, dict) or any(not isinstance(model.get(k), dict) for k in ("vision_cfg", "text_cfg")):
        raise ValueError(f"{folder / CONFIG} is not open_clip's: its vision_cfg and text_cfg are to be objects")
    if foreign := sorted(set(_fetching(config))):
        raise ValueError(f"{folder / CONFIG}: {' and '.join(foreign)} would fetch files from elsewhere; not supported")
    return folder


def _fetching(config: Any, name: str = "") -> Iterator[str]:
    """The entries of a configuration, at any depth, by which open_clip would read what is not in the folder."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from [key] if key in FETCHING and value else _fetching(value, key)
    elif isinstance(config, list):
        for value in config:
            yield from _fetching(value, name)
    elif isinstance(config, str) and (":" in config or (name == "timm_model_name" and "/" in config)):
        yield name


def load_clip(folder: Path) -> Any:
    """An open_clip model from its folder, in eval mode and frozen."""
    import open_clip

    model: Any = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
    return model.eval().requires_grad_(False)


def load_statistics(folder: Path, width: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each ``[width]``, of image features; 0 and 1 where none were saved."""
    path = folder / STATISTICS
    if not path.is_file():
        return torch.zeros(width), torch.ones(width)
    from safetensors.torch import load_file

    statistics = load_file(path)
    return statistics["image_mean"], statistics["image_std"]


class ImageFeature(nn.Module):
    """CLIP's projected image feature, not of unit length, standardised where the model's folder has statistics."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        from open_clip.transform import PreprocessCfg, image_transform_v2

        folder = locate_clip(name)
        self.visual: Any = load_clip(folder).visual  # the text tower is not needed and is let go
        self.preprocess = image_transform_v2(PreprocessCfg(**self.visual.preprocess_cfg), is_train=False)
        self.width = int(self.visual.output_dim)
        mean, std = load_statistics(folder, self.width)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocessed pixels ``[b, 3, h, w]`` → ``[b, width]``."""
        return (self.visual(pixels) - self.mean) / self.std


class TextState(nn.Module):
    """Hidden states of CLIP's text tower after its final layer norm."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import open_clip

        folder = locate_clip(name)
        self.clip: Any = load_clip(folder)
        self.clip.visual = nn.Identity()  # the image tower is not needed and is let go
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.length = int(self.clip.context_length)
        self.width = int(self.clip.ln_final.weight.shape[0])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts → token ids ``[b, length]``."""
        return tokenize(self.tokenizer, texts, self.length)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids ``[b, length]`` → states ``[b, length, width]``."""
        output = self.clip.forward_intermediates(text=ids, text_indices=1, normalize_intermediates=True)
        states: Tensor = output["text_intermediates"][-1]
        return states


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Texts → token ids ``[b, length]``: start, text, then end up to the length.

    The reference pads with the end token and masks nothing, so the padding's states carry content too; open_clip's
    own call pads with 0, which gives other states there.
    """
    rows = [_pad(tokenizer, tokenizer.encode(text), length, text) for text in texts]
    return torch.tensor(rows, dtype=torch.long)


def _pad(tokenizer: Any, tokens: list[int], length: int, text: str) -> list[int]:
    if len(tokens) > length - 2:
        warnings.warn(
            f"a caption of {len(tokens) + 2} tokens is cut at the {length} that CLIP reads: {text[:60]!r}…",
            stacklevel=4,
        )
    kept = tokens[: length - 2]
    return [tokenizer.sot_token_id, *kept, *[tokenizer.eot_token_id] * (length - 1 - len(kept))]
