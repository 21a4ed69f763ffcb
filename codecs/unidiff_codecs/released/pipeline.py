"""What diffusers' ``UniDiffuserPipeline`` needs besides the networks: its index, the text tokenizer, the scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unidiff_codecs.released.text_decoder import TOKENIZER_FOLDER
from unidiff_codecs.text_decoder import TOKENIZER, TextDecoder
from unidiff_core.process.gaussian.schedule import ScaledLinear

INDEX, SCHEDULER = "model_index.json", "scheduler"
CLIP = {
    "image_encoder": "CLIPVisionModelWithProjection",
    "text_encoder": "CLIPTextModel",
    "clip_image_processor": "CLIPImageProcessor",
    "clip_tokenizer": "CLIPTokenizer",
}
"""What a pipeline holds of CLIP, which is referred to and not exported."""
_PARTS = {
    "vae": ("diffusers", "AutoencoderKL"),
    "unet": ("diffusers", "UniDiffuserModel"),
    "text_decoder": ("diffusers", "UniDiffuserTextDecoder"),
    TOKENIZER_FOLDER: ("transformers", "GPT2Tokenizer"),
    SCHEDULER: ("diffusers", "DPMSolverMultistepScheduler"),
}
"""diffusers' own classes by their top name, which each version finds; not so the module `unidiffuser`."""
_END = "<|EOS|>"
"""The end token of the released text decoder, which GPT-2's own tokenizer lacks."""


def write_index(folder: Path) -> None:
    """Write ``model_index.json``."""
    from diffusers import __version__

    parts = {**_PARTS, **{name: ("transformers", cls) for name, cls in CLIP.items()}}
    index = {"_class_name": "UniDiffuserPipeline", "_diffusers_version": __version__, **parts}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_scheduler(folder: Path, schedule: ScaledLinear) -> None:
    """Write diffusers' DPM-Solver++ for a noise schedule, at its defaults."""
    from diffusers import DPMSolverMultistepScheduler

    betas = {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end, "beta_schedule": "scaled_linear"}
    DPMSolverMultistepScheduler(**betas).save_pretrained(folder / SCHEDULER)


def write_tokenizer(folder: Path, decoder: TextDecoder) -> None:
    """Write ``text_tokenizer/``: the decoder's tokenizer as it is, and a config that adds the end token.

    Raises:
        ValueError: if the tokenizer is not of GPT-2's kind.
    """
    backend = decoder.tokenizer.backend_tokenizer
    if (kind := type(backend.model).__name__) != "BPE":
        raise ValueError(f"diffusers' layout holds a GPT2Tokenizer, a BPE; the text decoder's tokenizer is a {kind}")
    place = folder / TOKENIZER_FOLDER
    place.mkdir()
    backend.save(str(place / TOKENIZER))
    backend.model.save(str(place))  # vocab.json and merges.txt, which older versions of transformers read
    (place / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(decoder), indent=2) + "\n")


def _tokenizer_config(decoder: TextDecoder) -> dict[str, Any]:
    has_end = len(decoder.tokenizer) > decoder.end
    end = str(decoder.tokenizer.convert_ids_to_tokens(decoder.end)) if has_end else _END
    token = {"content": end, "special": True, **dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)}
    tokens = {"bos_token": end, "eos_token": end, "unk_token": end}
    kind = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    return {**kind, **tokens, "added_tokens_decoder": {str(decoder.end): token}}
