"""The image autoencoder: Stable Diffusion's own keys (``autoencoder_kl.pth``) against diffusers' ``AutoencoderKL``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unidiff_codecs.released.state import State, check_names, check_shapes, check_telling, shapes_of, transfer

SCALE = 0.18215
"""Factor of the latent in UniDiffuser's and Stable Diffusion's released code."""

_RENAMES = (  # diffusers' name → the original one; the first column is a regular expression
    (r"conv_norm_out", "norm_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)", r"up.\1.block.\2"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"conv_shortcut", "nin_shortcut"),
)
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names that diffusers gave the attention of autoencoders before its version 0.17."""


def released_config(state: State, *, path: Path) -> dict[str, Any]:
    """Arguments of diffusers' ``AutoencoderKL``, read off the tensors.

    Args:
        state: as in the file.
        path: for messages.

    Raises:
        ValueError: if what tells the sizes is missing or of another shape.
    """
    widths = [name for name in state if re.fullmatch(r"encoder\.down\.\d+\.block\.0\.conv1\.weight", name)]
    num = max(len(widths), 1)
    levels = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(num)]
    dims = dict.fromkeys([*levels, "encoder.conv_in.weight", "decoder.conv_out.weight", "post_quant_conv.weight"], 4)
    check_telling(state, dims, path)
    layers = [name for name in state if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)]
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * num,
        "up_block_types": ["UpDecoderBlock2D"] * num,
        "block_out_channels": [state[name].shape[0] for name in levels],
        "layers_per_block": len(layers),
        "latent_channels": state["post_quant_conv.weight"].shape[1],
        "scaling_factor": SCALE,
    }


def import_released(state: State, config: Mapping[str, Any], path: Path) -> Any:
    """An ``AutoencoderKL`` from tensors under the original names.

    Raises:
        ValueError: if names or shapes are not exactly those of the config; lists them.
    """
    network = _network(config, path)
    ours = shapes_of(network.state_dict())
    levels = len(config["block_out_channels"])
    pairs = [((original_name(name, levels),), (name,)) for name in ours]
    theirs = {original: _original_shape(name, ours[name]) for (original,), (name,) in pairs}
    check_names(state, theirs, path)
    check_shapes(state, theirs, path)
    network.load_state_dict(transfer(state, pairs, ours))
    return network


def import_diffusers(state: State, config: Mapping[str, Any], path: Path) -> Any:
    """An ``AutoencoderKL`` from tensors under diffusers' names, those of older versions included.

    Raises:
        ValueError: if names or shapes are not exactly those of the config; lists them.
    """
    if (found := config.get("_class_name")) != "AutoencoderKL":
        raise ValueError(f"{path.parent / 'config.json'} is of a {found!r}, not of an AutoencoderKL")
    network = _network({name: value for name, value in config.items() if not name.startswith("_")}, path)
    ours = shapes_of(network.state_dict())
    state = {_today(name): value for name, value in state.items()}
    check_names(state, ours, path)
    check_shapes(state, ours, path)
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network


def _network(config: Mapping[str, Any], path: Path) -> Any:
    from diffusers import AutoencoderKL

    try:
        return AutoencoderKL(**config).eval()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the autoencoder of {path} cannot be built from its sizes: {error}") from error


def original_name(name: str, levels: int) -> str:
    """The original name of a tensor that diffusers calls `name`. The decoder's levels count the other way round.

    Args:
        name: in diffusers' state dict.
        levels: number of resolutions.
    """
    for pattern, original in _RENAMES:
        name = re.sub(rf"(?<=\.){pattern}(?=\.)", original, name)
    return re.sub(r"(?<=^decoder\.up\.)\d+", lambda found: str(levels - 1 - int(found[0])), name)


def _original_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The original attention's linear layers are convolutions of 1×1."""
    is_linear = ".attentions." in name and len(shape) == 2
    return (*shape, 1, 1) if is_linear else shape


def _today(name: str) -> str:
    """A name of any version of diffusers → today's."""
    return re.sub(
        r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)", lambda found: _OLD_ATTENTION[found[0]], name
    )
