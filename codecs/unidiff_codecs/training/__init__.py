"""Training of the codecs' networks, at any size. Driven by `unidiffuser fit-codec`."""

from unidiff_codecs.training.autoencoder import AutoencoderTraining
from unidiff_codecs.training.clip import ClipTraining
from unidiff_codecs.training.data import CaptionData, ImageData, PairData
from unidiff_codecs.training.table import NumbersTraining, TableData
from unidiff_codecs.training.text_decoder import TextDecoderTraining
from unidiff_codecs.training.tokens import TokensTraining

__all__ = [
    "AutoencoderTraining",
    "CaptionData",
    "ClipTraining",
    "ImageData",
    "NumbersTraining",
    "PairData",
    "TableData",
    "TextDecoderTraining",
    "TokensTraining",
]
