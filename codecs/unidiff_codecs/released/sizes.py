"""Sizes of the U-ViT: read off the released tensors, off diffusers' config, or off our network; and as that config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unidiff_codecs.released.names import TYPES, names_of
from unidiff_codecs.released.state import State, check_names, check_telling
from unidiff_core import Stream
from unidiff_core.network.backbone import Ports
from unidiff_core.network.uvit import UViT, ports_of

AE, CLIP, STATES = "image.ae", "image.clip", "text.states"


@dataclass(frozen=True)
class Sizes:
    """Everything about the network's shape."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    channels: int
    """Of the autoencoder's latent."""
    side: int
    """Of the latent's grid, in cells."""
    patch: int
    clip_width: int
    length: int
    """Number of text states."""
    state_width: int
    data_types: int = 0

    @property
    def ports(self) -> Ports:
        """Ports of the streams that the released network has."""
        return ports_of(
            {
                AE: Stream.grid(self.channels, self.side, self.side, patch=self.patch),
                CLIP: Stream.vector(self.clip_width),
                STATES: Stream.sequence(self.length, self.state_width),
            }
        )

    def network(self, ports: Ports | None = None) -> UViT:
        """The network without memory for its weights (on the meta device); they are assigned."""
        mlp_ratio = self.mlp_width / self.width
        with torch.device("meta"):
            return UViT(ports or self.ports, self.width, self.depth, self.heads, mlp_ratio, self.data_types)

    @classmethod
    def of(cls, network: UViT) -> Sizes:
        """Sizes of a network of ours.

        Raises:
            ValueError: if its streams are not those of the released network.
        """
        streams = {key: network.tokens_of(key).port.seen for key in network.stream_keys()}
        if set(streams) != {AE, CLIP, STATES}:
            raise ValueError(f"the released network has the streams {AE}, {CLIP}, {STATES}, not {', '.join(streams)}")
        channels, side, _ = streams[AE].shape
        length, state_width = streams[STATES].shape
        return cls(
            width=network.width,
            depth=network.depth,
            heads=network.heads,
            mlp_width=round(network.width * network.mlp_ratio),
            channels=channels,
            side=side,
            patch=streams[AE].patch[0],
            clip_width=streams[CLIP].channels,
            length=length,
            state_width=state_width,
            data_types=network.data_types,
        )


def released_sizes(state: State, *, length: int, heads: int | None, path: Path) -> Sizes:
    """Sizes of the network in a released file, read off its tensors.

    Args:
        state: as in the file.
        length: number of text states, which no tensor tells apart from the number of patches.
        heads: attention heads, which no tensor tells; 64 channels each if None.
        path: for messages.

    Raises:
        ValueError: if names are missing or not known, or if the tensors are of no possible sizes.
    """
    blocks = Counter(
        name.partition(".")[0] for name in state if re.fullmatch(r"\w+_blocks\.\d+\.attn\.qkv\.weight", name)
    )
    depth = 2 * max(blocks.values(), default=0) + 1
    has_types = any(released in state for _, released, _ in TYPES)
    check_names(state, names_of("released", depth, has_types=has_types), path)
    dims = {"patch_embed.proj.weight": 4, "pos_embed": 3, "mid_block.mlp.fc1.weight": 2, "text_embed.weight": 2}
    dims |= {"clip_img_embed.weight": 2} | ({"token_embedding.weight": 2} if has_types else {})
    check_telling(state, dims, path)
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    return Sizes(
        width=width,
        depth=depth,
        heads=heads or _heads(width, path),
        mlp_width=state["mid_block.mlp.fc1.weight"].shape[0],
        channels=channels,
        side=patch * _patches(state["pos_embed"], length, path),
        patch=patch,
        clip_width=state["clip_img_embed.weight"].shape[1],
        length=length,
        state_width=state["text_embed.weight"].shape[1],
        data_types=state["token_embedding.weight"].shape[0] if has_types else 0,
    )


def _heads(width: int, path: Path) -> int:
    if width % 64:
        raise ValueError(f"the width {width} of the network in {path} is no multiple of 64: give `heads`")
    return width // 64


def _patches(pos_embed: Tensor, length: int, path: Path) -> int:
    """Patches a side: what is left of the positions is a square."""
    num = pos_embed.shape[1] - 2 - length - 1
    side = round(max(num, 0) ** 0.5)
    if num < 1 or side**2 != num:
        raise ValueError(
            f"pos_embed in {path} has {pos_embed.shape[1]} positions; less 2 times, 1 CLIP and {length} text tokens "
            f"that leaves {num}, which is no square of patches. Give the number of text tokens as `length`"
        )
    return side


_CONFIG = {  # what our network is, in diffusers' words
    "attention_bias": False,
    "activation_fn": "gelu",
    "norm_type": "layer_norm",
    "block_type": "unidiffuser",
    "pre_layer_norm": False,
    "use_timestep_embedding": False,
    "norm_elementwise_affine": True,
    "use_patch_pos_embed": False,
}


def diffusers_sizes(config: Mapping[str, Any], path: Path) -> Sizes:
    """Sizes of diffusers' ``UniDiffuserModel``, from its config.

    Raises:
        ValueError: if it is another kind of network; names what is different.
    """
    known = _CONFIG | {"activation_fn": "geglu"} | dict(config)  # its defaults are ours, but for that one
    other = [f"{name} {known[name]!r} in place of {value!r}" for name, value in _CONFIG.items() if known[name] != value]
    if (found := config.get("_class_name")) != "UniDiffuserModel":
        other.append(f"_class_name {found!r} in place of 'UniDiffuserModel'")
    wanted = (
        "text_dim", "clip_img_dim", "num_text_tokens", "num_attention_heads", "attention_head_dim", "in_channels",
        "num_layers", "sample_size", "patch_size",
    )  # fmt: skip
    other += [f"{name} {config.get(name)!r}, not a number" for name in wanted if not isinstance(config.get(name), int)]
    if config.get("out_channels") not in (None, config.get("in_channels")):
        other.append(f"out_channels {config['out_channels']!r} in place of {config.get('in_channels')!r}")
    if other:
        raise ValueError(f"{path} is not the released network's: {'; '.join(other)}")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return Sizes(
        width=width,
        depth=config["num_layers"] // 2 * 2 + 1,  # its count leaves out the middle block
        heads=config["num_attention_heads"],
        mlp_width=4 * width,
        channels=config["in_channels"],
        side=config["sample_size"],
        patch=config["patch_size"],
        clip_width=config["clip_img_dim"],
        length=config["num_text_tokens"],
        state_width=config["text_dim"],
        data_types=2 if config.get("use_data_type_embedding") else 0,
    )


def diffusers_config(sizes: Sizes) -> dict[str, Any]:
    """The config of diffusers' ``UniDiffuserModel`` of these sizes.

    Raises:
        ValueError: if it cannot be of these sizes.
    """
    if sizes.mlp_width != 4 * sizes.width or sizes.data_types not in (0, 2):
        raise ValueError(
            "diffusers' UniDiffuserModel has an MLP four times its width and 0 or 2 data types, "
            f"not an MLP of {sizes.mlp_width} at width {sizes.width} and {sizes.data_types} data types"
        )
    return {
        "_class_name": "UniDiffuserModel",
        "text_dim": sizes.state_width,
        "clip_img_dim": sizes.clip_width,
        "num_text_tokens": sizes.length,
        "num_attention_heads": sizes.heads,
        "attention_head_dim": sizes.width // sizes.heads,
        "in_channels": sizes.channels,
        "out_channels": sizes.channels,
        "num_layers": sizes.depth - 1,
        "sample_size": sizes.side,
        "patch_size": sizes.patch,
        **_CONFIG,
        "dropout": 0.0,
        "ff_final_dropout": True,
        "use_data_type_embedding": sizes.data_types > 0,
    }
