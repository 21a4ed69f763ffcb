"""The files that UniDiffuser's authors released."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from unidiff_codecs.released import autoencoder, network, text_decoder
from unidiff_codecs.released.model import IMAGE_CLIP, LICENCE, TEXT_CLIP, Options, assemble
from unidiff_codecs.released.sizes import released_sizes
from unidiff_codecs.released.state import read_state
from unidiff_codecs.watermark import KEY
from unidiff_core import Converter
from unidiff_core.foundation.argument import check_sizes
from unidiff_core.serialization.converter import Report
from unidiff_core.serialization.description import Pretrained

NETWORKS = ("uvit_v0.pth", "uvit_v1.pth")
TEXT_DECODER, AUTOENCODER = "caption_decoder.pth", "autoencoder_kl.pth"


class ReleasedFolder(Converter):
    """Reads the files that UniDiffuser's authors released, v0 or v1 (uvit_v1.pth and those beside it); writes none.

    Args:
        network: file of the network, where both are there.
        tokenizer: folder or hub id of GPT-2's tokenizer, which the files do not hold; the text_tokenizer beside them if
            not given.
        image_clip: folder or hub id of the open_clip model that gives the image feature; it is referred to, not copied.
        text_clip: the same, for the text states.
        length: number of text states.
        heads: attention heads of the network; 64 channels each if not given.
        text_decoder_heads: attention heads of GPT-2; 64 channels each if not given.
        licence: licence of the weights.
        watermark: eight hexadecimal digits that images of 256 pixels and more a side carry unseen; null marks none.
    """

    layout: ClassVar[str] = f"{' or '.join(NETWORKS)}, {TEXT_DECODER}, {AUTOENCODER}"

    def __init__(
        self,
        network: Literal["uvit_v0.pth", "uvit_v1.pth"] | None = None,
        tokenizer: str | None = None,
        image_clip: str = IMAGE_CLIP,
        text_clip: str = TEXT_CLIP,
        length: int = 77,
        heads: int | None = None,
        text_decoder_heads: int | None = None,
        licence: str = LICENCE,
        watermark: str | None = KEY,
    ) -> None:
        check_sizes(length=length, heads=heads, text_decoder_heads=text_decoder_heads)
        self.network = network
        self.tokenizer, self.length = tokenizer, length
        self.heads, self.text_decoder_heads = heads, text_decoder_heads
        self.options = Options(image_clip, text_clip, licence, watermark)

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether there is any of the released files."""
        return any((source / name).is_file() for name in (*NETWORKS, TEXT_DECODER, AUTOENCODER))

    def read(self, source: Path, folder: Path, report: Report) -> Pretrained:
        """See `Converter.read`."""
        file = _network_file(source, self.network)
        tokenizer = text_decoder.tokenizer_beside(source, self.tokenizer)
        state = read_state(file, report)
        sizes = released_sizes(state, length=self.length, heads=self.heads, path=file)
        weights = network.import_state(state, sizes, "released", file)
        decoder = self._decoder(source / TEXT_DECODER, tokenizer, report)
        images = _autoencoder(source / AUTOENCODER, report)
        report.add(f"CLIP is not in these files and is loaded from {self.options.image_clip}, {self.options.text_clip}")
        names = f"{file.name}, {TEXT_DECODER} and {AUTOENCODER} of UniDiffuser (arXiv 2303.06555, thu-ml/unidiffuser)"
        return assemble(sizes, weights, images, decoder, folder, self.options, names, report)

    def _decoder(self, path: Path, tokenizer: object, report: Report) -> text_decoder.TextDecoder:
        state = text_decoder.without_clip(read_state(path, report), path, report)
        sizes = text_decoder.released_sizes(state, length=self.length, heads=self.text_decoder_heads, path=path)
        return text_decoder.import_decoder(state, sizes, tokenizer, "released", path, report)


def _autoencoder(path: Path, report: Report) -> object:
    state = read_state(path, report)
    return autoencoder.import_released(state, autoencoder.released_config(state, path=path), path)


def _network_file(source: Path, name: str | None) -> Path:
    """The network called `name`, or the only one; all files must be there.

    Raises:
        ValueError: naming what is absent, or if there are two networks and no name.
    """
    wanted = NETWORKS if name is None else (name,)
    found = [name for name in wanted if (source / name).is_file()]
    absent = [name for name in (TEXT_DECODER, AUTOENCODER) if not (source / name).is_file()]
    absent += [] if found else [" or ".join(wanted)]
    if absent:
        raise ValueError(f"{source} lacks {', '.join(absent)}")
    if len(found) > 1:
        raise ValueError(f"{source} holds two networks, {' and '.join(found)}; say which with --network={found[-1]}")
    return source / found[0]
