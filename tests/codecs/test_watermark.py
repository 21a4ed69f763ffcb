"""The watermark of images: what it survives, where it is not found, and who puts it there."""

from __future__ import annotations

import json
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import Namespace
from PIL import Image
from unidiff_codecs import watermark
from unidiff_codecs.image import ImageCodec
from unidiff_codecs.released import DiffusersFolder, ReleasedFolder
from unidiff_codecs.released.model import Options, image_codec
from unidiff_codecs.watermark import BITS, KEY, NEEDED, find, mark

from unidiff_core import Modality, UniDiffuser
from unidiff_core.cli.encode import _settings
from unidiff_core.cli.main import main
from unidiff_core.data.samples import _warn_of_other_codecs
from unidiff_core.data.shard import write_shards
from unidiff_core.network.uvit import UViT
from unidiff_core.serialization.converter import Report
from unidiff_core.serialization.description import describe_codecs

from .conftest import png

OTHER = "0123456789abcdef"


@pytest.fixture(scope="module")
def photographs():
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image).crop((90, 60, 346, 316)) for image in load_sample_images().images]


@pytest.fixture(scope="module")
def marked(photographs):
    return [mark(image, KEY) for image in photographs]


@pytest.fixture
def codec(image_arguments):
    return partial(ImageCodec, **image_arguments | {"size": 256, "clip": None, "patch": 8})


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "imwatermark.dwtDctSvd", None)


def run(*arguments):
    """Its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit:
        return exit.code
    return 0


def test_it_survives_files_and_is_not_found_where_it_is_not(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    import watermark as benchmark

    found = benchmark.measure(benchmark.photographs(), {"none": 4, "file": 2, "cut": 1})
    assert found.pop("decibels")[0] > 38
    assert {name: row["detected"] for name, row in found.items()} == {
        **{"none": 0, "png": 1, "jpeg": 1},
        **{"cut png": 1, "cut jpeg": 1},
    }
    assert found["png"]["bits"] == {BITS: 2} and found["none"]["bound"] < 1e-3


def test_bits_are_read_as_the_library_reads_them(marked, photographs):
    import cv2
    import pywt
    from imwatermark.dwtDctSvd import EmbedDwtDctSvd

    for image in (marked[0], photographs[1]):
        planes = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2YUV)[..., watermark.PLANES]
        read = watermark._read(watermark._averages(np.moveaxis(planes, -1, 0).astype(float)))
        for i in range(2):
            averages = pywt.dwt2(planes[..., i], "haar")[0]
            decoder = EmbedDwtDctSvd(wmLen=watermark.COLUMNS)
            votes = decoder.decode_frame(averages, watermark.SCALE, [[] for _ in range(watermark.COLUMNS)])
            assert np.array_equal(read[i], np.array([np.mean(vote) for vote in votes]) * 255 > 127)


def test_another_key_is_another_mark(marked):
    assert find(marked[0], KEY).matched == BITS
    assert not find(marked[0], OTHER).is_there


@pytest.mark.parametrize("size", [(264, 256), (400, 300), (256, 24)])
def test_pictures_of_any_width_are_marked_as_a_whole(size):
    plain = Image.fromarray(np.random.default_rng(0).integers(90, 160, (size[1], size[0], 3), dtype=np.uint8))
    image = mark(plain, KEY)
    assert image.size == size and find(image, KEY).matched == BITS
    right = image.crop((size[0] - 256, 0, *size))  # with the last columns, in a width that is no multiple of the bits'
    assert find(right, KEY).is_there


@pytest.mark.parametrize("size", [(7, 300), (8, 8), (128, 256), (1, 1)])
def test_what_is_too_small_to_hold_the_bits_does_not_carry_them(marked, size):
    found = find(marked[0].crop((0, 0, *size)), KEY)
    assert not found.is_there and found.matched <= size[0] // 8 * 2


def test_the_codec_marks_what_it_decodes_and_nothing_else(codec):
    latents = {"ae": torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(0))}
    plain, marking = codec(), codec(watermark=KEY)
    for raw, other in zip(marking.decode(latents), plain.decode(latents), strict=True):
        assert ImageCodec.find_mark(marking.to_bytes(raw)).matched == BITS
        assert np.abs(np.asarray(raw, int) - np.asarray(other, int)).mean() < 4
        assert not ImageCodec.find_mark(plain.to_bytes(other)).is_there
        stored = [row.encode([other])["ae"] for row in (plain, marking)]
        assert torch.equal(*stored)


def test_it_may_be_switched_in_a_model_directory_and_samples_are_verified(codec, tmp_path, capsys):
    model = UniDiffuser({"image": Modality(codec())}, partial(UViT, width=16, depth=3, heads=2))
    folder, out = tmp_path / "model", tmp_path / "out"
    model.save_pretrained(folder)
    sample = ("sample", folder, "image", "--steps=1", f"--out={out}")
    files = [out / "image/00000.png", out / "image/contact_sheet.png"]
    assert run(*sample) == 0 and run("verify", files[0]) == 1
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["modalities"]["image"]["codec"]["watermark"] is None
    config["modalities"]["image"]["codec"]["watermark"] = OTHER
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert run(*sample) == 0
    capsys.readouterr()
    assert run("verify", files[0], "--key", OTHER) == 0
    said = capsys.readouterr().out
    assert f"{files[0]}: carries the mark, 64 of 64 bits" in said
    assert f"{NEEDED} of 64 bits or more, which a file without it has with a probability of 4.7e-04 at most" in said
    plain = tmp_path / "plain.png"
    plain.write_bytes(png(Image.new("RGB", (256, 256), "grey")))
    assert run("verify", files[0], plain, "--key", OTHER) == 1
    said = capsys.readouterr().out
    assert f"{files[0]}: carries" in said and f"{plain}: does not carry the mark, " in said


def test_latents_serve_with_a_watermark_and_without(tmp_path, recwarn):
    write_shards(tmp_path, [{"__key__": "0", "txt": b"a"}])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    codecs = describe_codecs({"image": ImageCodec()})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"codecs": codecs}))
    _warn_of_other_codecs(str(tmp_path), {"image": ImageCodec(watermark=KEY)})
    assert not recwarn.list
    _warn_of_other_codecs(str(tmp_path), {"image": ImageCodec(size=256, watermark=KEY)})
    assert "size was 512 and is 256. Unless" in str(recwarn.pop(UserWarning).message)


def test_released_weights_are_converted_with_a_watermark():
    config = SimpleNamespace(latent_channels=4, block_out_channels=(1, 2, 3, 4))
    for side, wanted in ((64, KEY), (32, KEY), (24, None)):
        sizes = SimpleNamespace(channels=4, side=side, clip_width=512, patch=2)
        for converter in (ReleasedFolder(), DiffusersFolder()):
            report = Report()
            codec = image_codec(sizes, config, "autoencoder", converter.options, report)
            assert (codec.size, codec.watermark) == (side * 8, wanted)
            assert any(KEY in line for line in report.lines) == (wanted is not None)
    for converter in (ReleasedFolder(watermark=None), DiffusersFolder(watermark=None)):
        assert image_codec(sizes, config, "autoencoder", converter.options, Report()).watermark is None
    assert Options("a", "b", "c", OTHER).watermark == OTHER


@pytest.mark.parametrize("key", ["", "af7b0c0a", KEY.upper(), f"{KEY}0", 7, "af7b0c0a370804cg"])
def test_a_key_that_is_none(key):
    with pytest.raises(ValueError, match=r"the watermark .* is none: it is 16 hexadecimal digits in quotes"):
        ImageCodec(watermark=key)


def test_small_images_hold_no_watermark():
    with pytest.raises(ValueError, match="a watermark needs images of 256 pixels a side, and size is 128"):
        ImageCodec(size=128, watermark=KEY)


@pytest.mark.usefixtures("without_library")
def test_a_library_that_is_missing_is_named_with_what_installs_it(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(Image.new("RGB", (8, 8))))
    with pytest.raises(ValueError, match=r"pip install 'unidiff-core\[watermark\]'.*`--watermark=null` of `convert`"):
        ImageCodec(watermark=KEY)
    assert ImageCodec().watermark is None  # which needs none
    assert run("verify", tmp_path / "a.png") == 2
    assert "unidiff-core[watermark]" in capsys.readouterr().err.replace("\n", " ")


def test_files_that_are_no_pictures_are_named(tmp_path, capsys):
    (tmp_path / "a.png").write_text("no picture")
    for arguments, says in (
        ([tmp_path / "a.png"], f"{tmp_path}/a.png: not a readable image"),
        ([tmp_path / "b.png"], f"no such file: {tmp_path}/b.png"),
        ([tmp_path], "is a folder; name its files"),
        ([tmp_path / "a.png", "--key=red"], "the watermark 'red' is none"),
        ([], "it needs FILE"),
    ):
        assert run("verify", *arguments) == 2
        said = "".join(capsys.readouterr().err.split())
        assert "".join(says.split()) in said, said


def test_latents_are_the_same_whatever_marks_what_they_are_decoded_to():
    def settings(**more):
        codec = Namespace(class_path="unidiff_codecs.ImageCodec", init_args=Namespace(size=256, **more))
        rows = {"members": {}, "dtype": "float32", "keep": [], "clean": {}, "missing": "error"}
        return _settings(Namespace(codecs={"image": codec}, **rows), {"image": ImageCodec})

    assert settings(watermark=KEY) == settings(watermark=None) == settings()
