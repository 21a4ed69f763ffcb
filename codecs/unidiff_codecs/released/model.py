"""The model that both layouts hold: an image and a text modality under the released network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unidiff_codecs.image import ImageCodec
from unidiff_codecs.released.sizes import Sizes
from unidiff_codecs.text import TextCodec
from unidiff_codecs.text_decoder import TextDecoder
from unidiff_codecs.watermark import SMALLEST
from unidiff_core import Gaussian, Modality
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.process.gaussian.schedule import ScaledLinear
from unidiff_core.serialization.converter import Report
from unidiff_core.serialization.description import Description, Pretrained, describe

LICENCE = "AGPL-3.0"
IMAGE_CLIP = "hf-hub:timm/vit_base_patch32_clip_224.openai"
TEXT_CLIP = "hf-hub:timm/vit_large_patch14_clip_224.openai"

SAMPLING = {
    "steps": 50,
    "solver": "DiffusersSolver(DPMSolverSinglestepScheduler, 3)",
    "guidance": 7.0,
    "redraws_noise": True,
}
"""How the released code samples, as near as our solvers come: DPM-Solver++ singlestep of order 3 with 50 evaluations on
uniform times; the noise of what is silenced is drawn anew at each. It stops at t = 1 of 1000, and ours takes the last
step, to 0, too."""


@dataclass
class Options:
    """What the files do not say, as both converters take it."""

    image_clip: str
    text_clip: str
    licence: str
    watermark: str | None


def assemble(
    sizes: Sizes,
    weights: Mapping[str, Tensor],
    autoencoder: Any,
    decoder: TextDecoder,
    folder: Path,
    options: Options,
    source: str,
    report: Report,
) -> Pretrained:
    """Write the codecs' networks into `folder` and put the model together, without copying the weights.

    Raises:
        ValueError: if the parts do not fit together.
    """
    parts = folder / "autoencoder", folder / "text_decoder"
    autoencoder.save_pretrained(parts[0], safe_serialization=True)
    parts[1].mkdir()
    decoder.save_pretrained(parts[1])
    process = Gaussian(ScaledLinear(), "noise"), Gaussian(ScaledLinear(), "noise")
    images = image_codec(sizes, autoencoder.config, str(parts[0]), options, report)
    modalities = {
        "image": Modality(images, process[0]),
        "text": Modality(text_codec(sizes, decoder, str(parts[1]), options.text_clip), process[1]),
    }
    network = sizes.network({name: modality.ports for name, modality in modalities.items()})
    network.load_state_dict(dict(weights), assign=True)
    description = Description(
        modalities,
        describe(network, load_plugins()),
        licence=options.licence,
        sources=(source,),
        sampling=SAMPLING | ({"conditions": {"data_type": 1}} if sizes.data_types else {}),
    )
    return Pretrained(description, {f"backbone.{name}": value for name, value in weights.items()})


def image_codec(sizes: Sizes, config: Any, autoencoder: str, options: Options, report: Report) -> ImageCodec:
    """The image codec of a network and an autoencoder, with a watermark if its images are large enough for one.

    Raises:
        ValueError: if their latents differ.
    """
    if config.latent_channels != sizes.channels:
        raise ValueError(
            f"the network reads {sizes.channels} latent channels, the autoencoder gives {config.latent_channels}"
        )
    downsampling = 2 ** (len(config.block_out_channels) - 1)
    size = sizes.side * downsampling
    if options.watermark is not None and size >= SMALLEST:
        report.add(f"its images carry the watermark {options.watermark}, unseen (`unidiffuser verify` finds it)")
    return ImageCodec(
        autoencoder,
        options.image_clip,
        size=size,
        downsampling=downsampling,
        latent_channels=sizes.channels,
        clip_width=sizes.clip_width,
        patch=sizes.patch,
        watermark=options.watermark if size >= SMALLEST else None,
    )


def text_codec(sizes: Sizes, decoder: TextDecoder, folder: str, clip: str) -> TextCodec:
    """The text codec of a network and a text decoder.

    Raises:
        ValueError: if their states differ.
    """
    read, given = (sizes.length, sizes.state_width), (decoder.prefix_length, decoder.prefix_width)
    if read != given:
        raise ValueError(
            f"the network reads {read[0]} text states of width {read[1]}, "
            f"the text decoder {given[0]} of width {given[1]}"
        )
    return TextCodec(clip, folder, length=sizes.length, width=sizes.state_width)
