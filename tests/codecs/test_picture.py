"""A picture enters as a viewer shows it, wherever it enters."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from unidiff_codecs.image import ImageCodec
from unidiff_codecs.picture import MODES, MODES_WITH_ALPHA, as_rgb
from unidiff_codecs.training import ImageData

from . import cases


@pytest.fixture(params=["file", "shard member", "fit-codec"])
def opened(request, tmp_path):
    """What becomes of a picture's bytes, by the place where it enters."""

    def as_file(content):
        (tmp_path / "given").write_bytes(content)
        return ImageCodec().parse(str(tmp_path / "given"))

    def as_column(content):
        cases.tar(tmp_path / "shards/0.tar", [("0.png", content)])
        side = min(Image.open(io.BytesIO(content)).size)
        pixels = ImageData(str(tmp_path / "shards"), size=side).read()["image"][0]
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    return {"file": as_file, "shard member": ImageCodec().from_bytes, "fit-codec": as_column}[request.param]


def array(image):
    return np.asarray(image).astype(int)


def test_a_photograph_stands_upright(opened):
    turned, upright = array(opened(cases.phone())), array(opened(cases.upright()))
    assert turned.shape == upright.shape and abs(turned - upright).max() <= 3  # two JPEGs of one picture


def test_what_is_transparent_is_white_and_hides_nothing(opened):
    assert (array(opened(cases.cutout())) == 255).all()


def test_greys_of_16_bits_keep_their_range(opened):
    seen = array(opened(cases.grey16()))
    assert (seen == np.round(np.linspace(0, 65535, 1024).astype(int) / 257).reshape(32, 32, 1)).all()


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_the_one_that_pillow_applies(turn):
    exif = Image.Exif()
    exif[cases.ORIENTATION] = turn
    content = cases.data(cases.picture(0), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    shown = ImageCodec().from_bytes(content)
    assert shown.tobytes() == expected.tobytes() and as_rgb(shown).tobytes() == expected.tobytes()


def test_a_picture_that_python_opened_is_encoded_as_it_shows(image_arguments):
    codec = ImageCodec(**image_arguments)
    bare = [Image.open(io.BytesIO(content)) for content in (cases.phone(), cases.cutout(), cases.grey16())]
    read = [codec.from_bytes(content) for content in (cases.phone(), cases.cutout(), cases.grey16())]
    one, other = codec.encode(bare), codec.encode(read)
    assert all(torch.equal(one[name], other[name]) for name in one)


def transparent(mode, **options):
    image = Image.new(mode, (2, 2), 7)
    if mode == "P":
        image.putpalette([40, 80, 120] * 256)
    return cases.data(image, **options)


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_a_colour_that_is_said_to_be_transparent_is(mode):
    assert (array(ImageCodec().from_bytes(transparent(mode, transparency=7))) == 255).all()


@pytest.mark.parametrize("mode", [*MODES, *MODES_WITH_ALPHA, "I;16", "I;16B", "I;16L"])
def test_every_mode_becomes_rgb(mode):
    image = as_rgb(Image.new(mode, (3, 2)))
    assert image.mode == "RGB" and image.size == (3, 2)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_mode_without_a_stated_range_is_refused_by_name(mode):
    stream = io.BytesIO()
    Image.new(mode, (2, 2)).save(stream, "TIFF")
    with pytest.raises(ValueError, match=f"mode '{mode}' has no stated range"):
        ImageCodec().from_bytes(stream.getvalue())


def test_greys_of_a_pgm_of_16_bits():
    content = b"P5 2 1 65535\n" + bytes([0, 0, 255, 255])
    assert array(ImageCodec().from_bytes(content))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    "content", [b"", b"no image", cases.broken_chunk(), cases.upright()[:400], cases.cutout()[:90], cases.grey16()[:99]]
)
def test_a_broken_file_is_one_sentence(content):
    with pytest.raises(ValueError, match=rf"^not a readable image \({len(content)} bytes\): [^\n]+$"):
        ImageCodec().from_bytes(content)
