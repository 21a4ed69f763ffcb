from __future__ import annotations

from unidiff_codecs.image import ImageCodec
from unidiff_codecs.text import TextCodec

from unidiff_core.testing import check_codec
from unidiff_core.testing.contract import CLAUSES

from .conftest import CAPTIONS, picture


def test_the_image_codec_keeps_the_contract(image_arguments):
    report = check_codec(ImageCodec(**image_arguments), [picture(i) for i in range(3)])
    assert len(report.clauses) == len(CLAUSES)


def test_the_image_codec_without_clip_keeps_the_contract(image_arguments):
    codec = ImageCodec(**image_arguments | {"clip": None})
    report = check_codec(codec, [picture(i) for i in range(3)])
    assert len(report.clauses) == len(CLAUSES)
    assert list(codec.streams) == list(codec.encode([])) == ["ae"]


def test_the_text_codec_keeps_the_contract(text_arguments):
    report = check_codec(TextCodec(**text_arguments), CAPTIONS[:3])
    assert len(report.clauses) == len(CLAUSES)
