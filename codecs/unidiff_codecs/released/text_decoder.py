"""The text decoder: keys of ``caption_decoder.pth`` and of diffusers' ``UniDiffuserTextDecoder``, against ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unidiff_codecs.released.state import Layout, State, check_names, check_shapes, check_telling, listed
from unidiff_codecs.text_decoder import TOKENIZER, TextDecoder, read_tokenizer
from unidiff_core.codec.weights import locate, require
from unidiff_core.serialization.converter import Report

_GPT2 = "transformer.transformer"
WORDS, HEAD = f"{_GPT2}.wte.weight", "transformer.lm_head.weight"
"""GPT-2's embedding, and its output layer, which is the same matrix."""
TOKENIZER_FOLDER, TOKENIZER_FILES = "text_tokenizer", ("tokenizer.json", "vocab.json", "merges.txt")
GPT2 = "hf-hub:openai-community/gpt2"
STATISTICS = ("mean", "std")
"""What our decoder has besides: it standardises the states. 0 and 1 in released weights."""

_MASK = re.compile(r"\.transformer\.h\.\d+\.attn\.(?:bias|masked_bias)$")
"""Causal masks that older transformers stored as buffers: constants, no weights."""

_WIDTHS = {"state_width": "prefix_inner_dim", "prefix_length": "prefix_length", "prefix_width": "prefix_hidden_dim"}
"""Our name of each size → diffusers'."""
_GPT = (
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function", "resid_pdrop",
    "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range", "scale_attn_weights", "use_cache",
    "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn",
)  # fmt: skip
"""Parameters of GPT-2 that diffusers' config holds under the same names."""


def their_name(name: str, layout: Layout) -> str:
    """Our name of a tensor, which is diffusers' → that of the layout."""
    return name if layout == "diffusers" else "module." + re.sub(r"^transformer\.", "gpt.", name)


def without_clip(state: State, path: Path, report: Report) -> dict[str, Tensor]:
    """The tensors of ``caption_decoder.pth`` but for those of a CLIP that was stored along, which are reported."""
    ignored = [name for name in state if name.startswith("module.clip")]
    if ignored:
        report.add(f"{path.name}: {len(ignored)} tensors of a CLIP stored along are not used: {listed(ignored)}")
    return {name: value for name, value in state.items() if name not in ignored}


def released_sizes(state: State, *, length: int, heads: int | None, path: Path) -> dict[str, Any]:
    """Arguments of our `TextDecoder`, read off the tensors of ``caption_decoder.pth``.

    Args:
        state: as in the file.
        length: number of text states.
        heads: GPT-2's attention heads, which no tensor tells; 64 channels each if None.
        path: for messages.

    Raises:
        ValueError: if what tells the sizes is missing or of another shape.
    """
    telling = ("encode_prefix.weight", WORDS, f"{_GPT2}.wpe.weight", f"{_GPT2}.h.0.mlp.c_fc.weight")
    names = [their_name(name, "released") for name in telling]
    check_telling(state, dict.fromkeys(names, 2), path)
    encode, words, positions, inner = (tuple(state[name].shape) for name in names)
    width = words[1]
    if heads is None and width % 64:
        raise ValueError(f"the width {width} of GPT-2 in {path} is no multiple of 64: give `text_decoder_heads`")
    layers = {found[1] for name in state if (found := re.match(r"module\.gpt\.transformer\.h\.(\d+)\.ln_1\.", name))}
    gpt = {"vocab_size": words[0], "n_positions": positions[0], "n_embd": width, "n_layer": len(layers)}
    gpt |= {"n_head": heads or width // 64, "n_inner": inner[1]}
    return {"state_width": encode[1], "prefix_length": length, "prefix_width": encode[0], "gpt": gpt}


def diffusers_sizes(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Arguments of our `TextDecoder`, from the config of diffusers' decoder.

    Raises:
        ValueError: if it is of another class, or has no sizes.
    """
    widths = {ours: config.get(theirs) for ours, theirs in _WIDTHS.items()}
    if config.get("_class_name") != "UniDiffuserTextDecoder" or not all(isinstance(n, int) for n in widths.values()):
        found = {name: config.get(name) for name in ("_class_name", *_WIDTHS.values())}
        raise ValueError(f"{path} is not that of a UniDiffuserTextDecoder with {', '.join(_WIDTHS.values())}: {found}")
    return {**widths, "gpt": {name: config[name] for name in _GPT if name in config}}


def diffusers_config(decoder: TextDecoder) -> dict[str, Any]:
    """The config of diffusers' decoder."""
    gpt = decoder.transformer.config
    widths = {theirs: getattr(decoder, ours) for ours, theirs in _WIDTHS.items()}
    return {"_class_name": "UniDiffuserTextDecoder", **widths, **{name: getattr(gpt, name) for name in _GPT}}


def import_decoder(
    state: State, sizes: Mapping[str, Any], tokenizer: Any, layout: Layout, path: Path, report: Report
) -> TextDecoder:
    """Our decoder from the tensors of another layout.

    Raises:
        ValueError: if names or shapes are not exactly the layout's, GPT-2's output layer is not its embedding, or the
            tokenizer has another vocabulary.
    """
    _check_tokenizer(tokenizer, sizes["gpt"]["vocab_size"], path)
    decoder = TextDecoder(**sizes, tokenizer=tokenizer)
    names = {name: their_name(name, layout) for name in decoder.state_dict() if name not in STATISTICS}
    state = _without_masks(state, path, report)
    if names[WORDS] in state:
        state.setdefault(names[HEAD], state[names[WORDS]])  # one matrix, which may be stored once
    check_names(state, names.values(), path)
    check_shapes(state, {their: tuple(decoder.state_dict()[our].shape) for our, their in names.items()}, path)
    if not torch.equal(state[names[HEAD]], state[names[WORDS]]):
        raise ValueError(f"{path}: {names[HEAD]} is not {names[WORDS]}; this GPT-2 has one matrix for both")
    decoder.load_state_dict({our: state[their].float() for our, their in names.items()}, strict=False)
    return decoder


def _without_masks(state: State, path: Path, report: Report) -> dict[str, Tensor]:
    masks = [name for name in state if _MASK.search(name)]
    if masks:
        report.add(f"{path.name}: {len(masks)} causal masks are constants and are not used: {listed(masks)}")
    return {name: value for name, value in state.items() if name not in masks}


def export_state(decoder: TextDecoder) -> dict[str, Tensor]:
    """Our decoder's tensors under diffusers' names; `import_decoder` gives them back bit for bit.

    Raises:
        ValueError: if it standardises the states, which diffusers' decoder cannot.
    """
    state = decoder.state_dict()
    mean, std = (state.pop(name) for name in STATISTICS)
    if mean.any() or (std != 1).any():
        raise ValueError(
            "the text decoder standardises its states by a mean and a standard deviation of its own; "
            "diffusers' UniDiffuserTextDecoder has no place for them"
        )
    return {name: value.clone() for name, value in state.items()}


def tokenizer_beside(source: Path, name: str | None) -> Any:
    """GPT-2's tokenizer: from where the user says, or else from the folder ``text_tokenizer`` of diffusers' layout.

    Args:
        source: the folder that is converted.
        name: folder or hub id; nothing is fetched without one.

    Raises:
        ValueError: if it is not there; says what to give.
        OSError: if the hub does not answer.
    """
    if name is not None:
        return find_tokenizer(locate(name, TOKENIZER_FILES))
    if not (source / TOKENIZER_FOLDER).is_dir():
        raise ValueError(
            f"{source} has no {TOKENIZER_FOLDER}/. Give GPT-2's tokenizer: --tokenizer=FOLDER, with its vocab.json and "
            f"merges.txt, or --tokenizer={GPT2} to fetch it"
        )
    return find_tokenizer(source / TOKENIZER_FOLDER)


def find_tokenizer(folder: Path) -> Any:
    """GPT-2's tokenizer from a folder with ``tokenizer.json``, or with ``vocab.json`` and ``merges.txt``.

    Raises:
        ValueError: if neither is there, or what is there is no tokenizer.
    """
    if (folder / TOKENIZER).is_file():
        require(folder, TOKENIZER)
        return read_tokenizer(folder)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise ValueError(f"{folder} has neither {TOKENIZER} nor {vocabulary.name} and {merges.name}: no tokenizer")
    require(folder, vocabulary.name, merges.name)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer: Any = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"{vocabulary} and {merges} are not a tokenizer: {error}; get them again") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _check_tokenizer(tokenizer: Any, vocabulary: int, path: Path) -> None:
    """The decoder knows the tokenizer's symbols and the end token, which the tokenizer may hold or not."""
    if len(tokenizer) not in (vocabulary - 1, vocabulary):
        raise ValueError(
            f"the text decoder in {path} has {vocabulary} symbols, the last one the end token, but the tokenizer has "
            f"{len(tokenizer)}; give the tokenizer of the GPT-2 that it was made from"
        )
