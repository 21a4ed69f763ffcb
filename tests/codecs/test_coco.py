"""A small folder in COCO's format, to shards and through the paper's protocol."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.linalg import sqrtm
from torch import nn
from unidiff_codecs.coco import CocoSource
from unidiff_codecs.image import ImageCodec, square
from unidiff_codecs.text import TextCodec

from tests.command import run_command
from unidiff_core import Modality, UniDiffuser
from unidiff_core.data.salvage import read_shards
from unidiff_core.network.uvit import UViT

from .conftest import picture
from .test_metrics import cosines, pixels

ROOT = Path(__file__).parents[2]
COUNT = 12
COLOURS = ("red", "green", "blue", "grey")


def write_json(root, images, annotations):
    (root / "annotations").mkdir(exist_ok=True)
    content = {"info": {"year": 2014}, "images": images, "annotations": annotations}
    (root / "annotations/captions_val2014.json").write_text(json.dumps(content))


def rows_of(count=COUNT):
    """The JSON's images, and five captions of each, in no order."""
    images = [{"id": 7 * i + 1, "file_name": f"COCO_val2014_{7 * i + 1:012d}.jpg", "width": 40} for i in range(count)]
    annotations = [
        {"id": 100 * k + i, "image_id": 7 * i + 1, "caption": f"a {COLOURS[i % 4]} one, {k}\n"}
        for k in range(5)
        for i in reversed(range(count))
    ]
    return images, annotations


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "coco"
    (root / "val2014").mkdir(parents=True)
    images, annotations = rows_of()
    for i, row in enumerate(images):
        picture(i, (40, 32)).save(root / "val2014" / row["file_name"], "JPEG")
    write_json(root, images, annotations)
    return root


def source(root, **options):
    return CocoSource(str(root / "val2014"), str(root / "annotations/captions_val2014.json"), **options)


def captions(row):
    return [value.decode() for name, value in row.items() if name.endswith("txt")]


def test_each_image_has_its_captions_in_an_order_that_the_seed_fixes(coco):
    with pytest.warns(UserWarning, match="12 of 12 samples have several captions"):
        rows = list(source(coco, size=32).samples("test"))
    assert source(coco).splits == {"test": COUNT}
    for row in rows:
        image = int(row["__key__"])
        name = f"COCO_val2014_{image:012d}.jpg"
        assert json.loads(row["json"]) == {"file_name": name, "image_id": image}
        assert sorted(captions(row)) == [f"a {COLOURS[(image - 1) // 7 % 4]} one, {k}" for k in range(5)]
        expected = np.asarray(square(Image.open(coco / "val2014" / name), 32))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["png"]))), expected)
    keys = [row["__key__"] for row in rows]
    assert keys != sorted(keys) and len({captions(row)[0][-1] for row in rows}) > 1  # images and captions at random
    other = [row["__key__"] for row in source(coco, seed=1).samples("test")]
    assert other != keys and sorted(other) == sorted(keys)
    images, annotations = rows_of()
    write_json(coco, images[::-1], annotations[::-1])  # the file's order does not matter
    assert list(source(coco, size=32).samples("test")) == rows
    few = list(source(coco, num=5, size=None, split="val").samples("val"))
    assert [row["__key__"] for row in few] == keys[:5]
    name = json.loads(few[0]["json"])["file_name"]
    assert few[0]["png"] == (coco / "val2014" / name).read_bytes()


@pytest.mark.filterwarnings("ignore:.*several captions")
def test_what_is_not_a_pair_is_counted(coco):
    images, annotations = rows_of()
    kept = [row for row in annotations if row["image_id"] != 8]
    write_json(
        coco, images, [*kept, {"id": 1000, "image_id": 999, "caption": "a stray"}, annotations[0] | {"caption": " "}]
    )
    (coco / "val2014" / images[3]["file_name"]).unlink()
    told = r"3 of 13 samples are not pairs: .*008.jpg \(no caption\), .*022.jpg \(no file\), captions of image 999"
    with pytest.raises(ValueError, match=f"{told}.*unpaired=skip"):
        _ = source(coco).splits
    with pytest.warns(UserWarning, match=f"left out: {told}"):
        skipping = source(coco, unpaired="skip")
        assert skipping.splits == {"test": COUNT - 2}
    assert len(skipping.files) == 1 + COUNT - 2
    rows = {int(row["__key__"]): row for row in source(coco, unpaired="keep").samples("test")}
    assert len(rows) == COUNT and not captions(rows[8]) and "png" not in rows[22] and len(captions(rows[22])) == 5
    everything = [row["__key__"] for row in source(coco, unpaired="keep").samples("test")]
    assert [key for key in everything if int(key) not in (8, 22)] == [*skipping.names]  # the rest keeps its order


def replaced(part, change):
    def write(root):
        parts = dict(zip(("images", "annotations"), rows_of(), strict=True))
        change(parts[part])
        write_json(root, **parts)

    return write


@pytest.mark.filterwarnings("ignore:.*several captions")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "val2014"), "no such folder: .*val2014; images is that of COCO's images"),
        (lambda root: shutil.rmtree(root / "annotations"), "no such file: .*captions_val2014.json; annotations is"),
        (lambda root: (root / "annotations/captions_val2014.json").write_text("{"), "captions_val2014.json is no JSON"),
        (lambda root: (root / "annotations/captions_val2014.json").write_text("[]"), "is not COCO's: an object with"),
        (lambda root: (root / "annotations/captions_val2014.json").write_text("{}"), "has no list 'images'"),
        (replaced("images", lambda rows: rows[0].update(id="one")), "id of images is missing or wrong: .*one"),
        (replaced("images", lambda rows: rows[1].update(id=1)), "two images have the id 1"),
        (replaced("images", lambda rows: rows[1].update(file_name=rows[0]["file_name"])), "one file stands for"),
        (replaced("images", lambda rows: rows[1].update(file_name="../x.jpg")), r"image 8 is \.\./x.jpg, which is not"),
        (replaced("annotations", lambda rows: rows[0].pop("image_id")), "image_id of annotations is missing"),
        (replaced("annotations", lambda rows: rows[0].update(caption=7)), "annotation 11: a caption is a text"),
    ],
)  # fmt: skip
def test_what_is_not_cocos_is_named(coco, change, message):
    change(coco)
    with pytest.raises(ValueError, match=message):
        list(source(coco).samples("test"))


@pytest.mark.filterwarnings("ignore:.*several captions")
def test_an_image_that_cannot_be_read_is_named_and_too_many_are_refused(coco):
    (coco / "val2014/COCO_val2014_000000000001.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"1 of 12 images cannot be read: .*000000000001\.jpg .*damaged=skip"):
        list(source(coco).samples("test"))
    with pytest.warns(UserWarning, match="left out: 1 of 12 images cannot be read"):
        assert source(coco, damaged="skip").splits == {"test": COUNT - 1}
    with pytest.raises(ValueError, match=r"000000000001\.jpg: not a readable image"):
        list(source(coco, damaged="keep").samples("test"))
    with pytest.raises(ValueError, match="has 12 samples to take; num=13 asks for more"):
        _ = source(coco, num=13, damaged="keep").splits
    with pytest.raises(ValueError, match="no split 'train'; there are test"):
        list(source(coco).samples("train"))


class Quarters(nn.Module):
    """In the place of Inception: the means of each channel's quarters, squared too; its numbers come from a file."""

    num_features = 6

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.load(weights, weights_only=True))

    def forward(self, images):
        assert images.dtype == torch.uint8
        means = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return (means - 0.5) @ self.matrix


def frechet(a, b):
    """Heusel et al. 2017, eq. 6, in float64."""
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = sqrtm(covariances[0] @ covariances[1]).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * cross)


@pytest.fixture
def model(image_arguments, text_arguments, tmp_path):
    torch.manual_seed(0)
    codecs = {"image": ImageCodec(**image_arguments), "text": TextCodec(**text_arguments)}
    backbone = partial(UViT, width=32, depth=3, heads=2)
    made = UniDiffuser({name: Modality(codec) for name, codec in codecs.items()}, backbone)
    made.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def drawn(folder, guidance):
    """Images as kept for a value of guidance, in order."""
    for note in folder.glob("draws/*/query.json"):
        asked = json.loads(note.read_text())
        if asked["query"] == "image | text" and asked["options"]["guidance"] == guidance:
            return [Image.open(io.BytesIO(row["image.png"])).convert("RGB") for row in read_shards(note.parent)]
    raise AssertionError(f"nothing drawn with guidance {guidance}")


def test_the_papers_protocol_from_a_folder_to_the_report(coco, model, clip, tmp_path):
    shards = run_command(
        "shards", "-c", ROOT / "recipes/coco/shards.yaml", f"--source.images={coco / 'val2014'}", "--source.size=32",
        f"--source.annotations={coco / 'annotations/captions_val2014.json'}", f"--output={tmp_path / 'shards'}",
    )  # fmt: skip
    assert shards.code == 0 and "12 samples in 1 shard" in shards.out, shards.err
    folders = {name: str(tmp_path / "shards/test") for name in ("train", "test")}
    path = ROOT / "recipes/coco/evaluate.yaml"
    lacking = run_command("evaluate", model, "-c", path, *(f"--{k}={v}" for k, v in folders.items()), cwd=tmp_path)
    assert lacking.code == 2 and "FID of image" in lacking.err and "torch-fidelity" in lacking.err
    assert not (model / "draws").exists()  # said before the first sample
    recipe = yaml.safe_load(path.read_text())
    for metric in recipe["metrics"]:  # the recipe's own, but for networks that are made here
        inner = metric["init_args"]["metric"]
        if metric["init_args"]["name"] == "FID":
            weights = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
            torch.save(weights, tmp_path / "features.pth")
            arguments = {"weights": str(tmp_path / "features.pth")}
            inner["init_args"]["feature"] = {"class_path": f"{__name__}.Quarters", "init_args": arguments}
        else:
            inner["init_args"]["clip"] = str(clip)
    recipe |= {**folders, "steps": 2, "sweep": {"guidance": [0.0, 8.0]}}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "evaluation"
    done = run_command("evaluate", model, "-c", tmp_path / "evaluate.yaml", "--num=10", f"--out={out}")
    assert done.code == 0, done.err
    found = json.loads((out / "evaluation.json").read_text())
    assert set(found["queries"]["image | text"]) == {"FID", "CLIP score"}
    assert set(found["queries"]["text | image"]) == {"CLIP score"}  # FID is of images
    sweep = found["sweeps"]["guidance"]["image | text"]
    assert list(sweep) == ["0", "8"]
    rows = list(read_shards(tmp_path / "shards/test"))
    real = pixels([Image.open(io.BytesIO(row["png"])) for row in rows])
    prompts = [row["txt"].decode() for row in rows[:10]]
    features = Quarters(str(tmp_path / "features.pth"))
    for guidance, metrics in ((0.0, sweep["0"]), (3.0, found["queries"]["image | text"]), (8.0, sweep["8"])):
        images = drawn(out, guidance)
        expected = frechet(*(features(part).double().numpy() for part in (real, pixels(images))))
        assert metrics["FID"]["value"] == pytest.approx(expected, abs=1e-3, rel=1e-3) and metrics["FID"]["n"] == 10
        score = cosines(clip, images, prompts).mean()
        assert metrics["CLIP score"]["value"] == pytest.approx(score, abs=1e-3)
        assert metrics["CLIP score"]["low"] < metrics["CLIP score"]["value"] < metrics["CLIP score"]["high"]
    page = unescape((out / "report.html").read_text())
    assert "CLIP score against FID" in page and "Versatile Diffusion (10.09)" in page
