"""The folder layout that diffusers gave UniDiffuser's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch

from unidiff_codecs.image import ImageCodec, load_autoencoder
from unidiff_codecs.released import autoencoder, network, text_decoder
from unidiff_codecs.released.model import IMAGE_CLIP, LICENCE, TEXT_CLIP, Options, assemble
from unidiff_codecs.released.pipeline import CLIP, write_index, write_scheduler, write_tokenizer
from unidiff_codecs.released.sizes import Sizes, diffusers_config, diffusers_sizes
from unidiff_codecs.released.state import check_names, check_shapes, find_weights, read_state, shapes_of
from unidiff_codecs.text import TextCodec
from unidiff_codecs.text_decoder import TextDecoder
from unidiff_codecs.watermark import KEY
from unidiff_core import Converter, ForwardProcess, Gaussian
from unidiff_core.codec.weights import read_config, require
from unidiff_core.network.uvit import UViT
from unidiff_core.process.gaussian.schedule import ScaledLinear
from unidiff_core.serialization.converter import Report
from unidiff_core.serialization.description import Description, Pretrained

NETWORK, AUTOENCODER, TEXT_DECODER, TOKENIZER = "unet", "vae", "text_decoder", text_decoder.TOKENIZER_FOLDER
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class DiffusersFolder(Converter):
    """Reads and writes diffusers' layout. The scheduler is not read: its index i is time i + 1 here.

    Args:
        tokenizer: folder or hub id of GPT-2's tokenizer; the folder's own text_tokenizer if not given.
        image_clip: folder or hub id of the open_clip model that gives the image feature; it is referred to, not copied.
        text_clip: the same, for the text states.
        licence: licence of the weights.
        watermark: eight hexadecimal digits that images of 256 pixels and more a side carry unseen; null marks none.
    """

    layout: ClassVar[str] = f"{NETWORK}/, {AUTOENCODER}/, {TEXT_DECODER}/, each with {CONFIG} and its weights"
    not_exported: ClassVar[str] = (
        f"{', '.join(CLIP)}, which a UniDiffuserPipeline needs too "
        "(pass to its `from_pretrained` those of thu-ml/unidiffuser-v1)"
    )

    def __init__(
        self,
        tokenizer: str | None = None,
        image_clip: str = IMAGE_CLIP,
        text_clip: str = TEXT_CLIP,
        licence: str = LICENCE,
        watermark: str | None = KEY,
    ) -> None:
        self.tokenizer = tokenizer
        self.options = Options(image_clip, text_clip, licence, watermark)

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether there is a folder ``unet`` with a config."""
        return (source / NETWORK / CONFIG).is_file()

    def read(self, source: Path, folder: Path, report: Report) -> Pretrained:
        """See `Converter.read`."""
        for name in (NETWORK, AUTOENCODER, TEXT_DECODER):
            _require_config(source / name)
        sizes = diffusers_sizes(read_config(source / NETWORK / CONFIG), source / NETWORK / CONFIG)
        weights = _read_network(source / NETWORK, sizes, report)
        decoder = self._read_decoder(source, report)
        images = _read_autoencoder(source / AUTOENCODER, report)
        self._report_rest(source, report)
        origin = f"{source.resolve().name}, in the layout of diffusers (UniDiffuser, arXiv 2303.06555)"
        return assemble(sizes, weights, images, decoder, folder, self.options, origin, report)

    def write(self, model: Pretrained, folder: Path, report: Report) -> None:
        """See `Converter.write`."""
        backbone, image, text = _parts(model.description)
        state = {name.removeprefix("backbone."): value for name, value in model.state.items()}
        ours = shapes_of(backbone.state_dict())
        check_names(state, ours, Path("the model"))
        check_shapes(state, ours, Path("the model"))
        sizes = Sizes.of(backbone)
        config, decoder = diffusers_config(sizes), TextDecoder.from_pretrained(text.text_decoder)
        _write(folder / TEXT_DECODER, text_decoder.diffusers_config(decoder), text_decoder.export_state(decoder))
        _write(folder / NETWORK, config, network.export_state(state, sizes, "diffusers"))
        load_autoencoder(image.autoencoder).save_pretrained(folder / AUTOENCODER, safe_serialization=True)  # type: ignore[operator]
        write_tokenizer(folder, decoder)
        write_scheduler(folder, ScaledLinear())
        write_index(folder)
        if model.description.licence:
            head = f"---\nlicense: {json.dumps(model.description.licence)}\n---\n\n"
            (folder / "README.md").write_text(f"{head}{model.description.terms}\n")
        report.add(f"not exported: {self.not_exported}")
        if image.watermark is not None:
            report.add("not exported: the watermark; diffusers' pipeline marks nothing")

    def _read_decoder(self, source: Path, report: Report) -> TextDecoder:
        folder = source / TEXT_DECODER
        sizes = text_decoder.diffusers_sizes(read_config(folder / CONFIG), folder / CONFIG)
        if (found := sizes["gpt"].get("activation_function", "gelu_new")) != "gelu_new":
            report.add(f"{TEXT_DECODER}/{CONFIG} says {found}, which is kept; the released GPT-2 has gelu_new")
        path = find_weights(folder)
        tokenizer = text_decoder.tokenizer_beside(source, self.tokenizer)
        return text_decoder.import_decoder(read_state(path, report), sizes, tokenizer, "diffusers", path, report)

    def _report_rest(self, source: Path, report: Report) -> None:
        """Say of every other folder what became of it."""
        clips = {"image_encoder": self.options.image_clip, "text_encoder": self.options.text_clip}
        for path in sorted(source.iterdir()):
            if path.name in clips:
                report.add(
                    f"{path.name}/ is not converted: that CLIP is loaded through open_clip from {clips[path.name]}"
                )
            elif path.is_dir() and path.name not in (NETWORK, AUTOENCODER, TEXT_DECODER, TOKENIZER):
                report.add(f"{path.name}/ is not used")


def _require_config(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder.parent} lacks the folder {folder.name}/")
    require(folder, CONFIG)


def _read_network(folder: Path, sizes: Sizes, report: Report) -> dict[str, Any]:
    path = find_weights(folder)
    state = read_state(path, report)
    weights = network.import_state(state, sizes, "diffusers", path)
    for copy, original in network.UNUSED.items():
        if any(not state[f"{copy}.{end}"].equal(state[f"{original}.{end}"]) for end in ("weight", "bias")):
            report.add(f"{path.name}: {copy} is not the copy of {original} that it should be; no network uses it")
    return weights


def _read_autoencoder(folder: Path, report: Report) -> Any:
    path = find_weights(folder)
    return autoencoder.import_diffusers(read_state(path, report), read_config(folder / CONFIG), path)


def _parts(model: Description) -> tuple[UViT, ImageCodec, TextCodec]:
    """Network and codecs of a model that the layout can hold.

    Raises:
        ValueError: if it is another kind of model; says in what.
    """
    codecs = {name: modality.codec for name, modality in model.modalities.items()}
    image, text = codecs.get("image"), codecs.get("text")
    if set(codecs) != {"image", "text"} or not isinstance(image, ImageCodec) or not isinstance(text, TextCodec):
        found = ", ".join(f"{name}: {type(codec).__name__}" for name, codec in codecs.items())
        raise ValueError(f"diffusers' layout holds image: ImageCodec and text: TextCodec, not {found}")
    for name, modality in model.modalities.items():
        if not _is_released(modality.process):
            raise ValueError(
                f"diffusers' pipeline takes predictions for noise under the released schedule; {name} is of another "
                "process, so the exported network would be misread"
            )
    with torch.device("meta"):
        backbone = model.make_backbone({name: modality.ports for name, modality in model.modalities.items()})
    if not isinstance(backbone, UViT):
        raise ValueError(f"diffusers' layout holds a U-ViT, not a {type(backbone).__name__}")
    return backbone, image, text


def _is_released(process: ForwardProcess) -> bool:
    """Whether a process is the released one: noise is predicted, under the default scaled linear schedule."""
    if not isinstance(process, Gaussian) or not isinstance(process.schedule, ScaledLinear):
        return False
    return process.prediction == "noise" and vars(process.schedule).items() >= vars(ScaledLinear()).items()


def _write(folder: Path, config: dict[str, Any], state: dict[str, Any]) -> None:
    from diffusers import __version__
    from safetensors.torch import save_file

    folder.mkdir()
    text = json.dumps(config | {"_diffusers_version": __version__}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n")
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})
