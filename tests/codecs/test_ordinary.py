"""From ordinary folders and shards to samples: what is found is used, or counted and told."""

from __future__ import annotations

import json
from functools import partial

import pytest
import pytorch_lightning as pl
from unidiff_codecs.source import DatasetSource, FolderSource
from unidiff_codecs.text import TextCodec
from unidiff_codecs.training import CaptionData, ImageData, PairData

from unidiff_core import Modality, UniDiffuser
from unidiff_core.cli import encode
from unidiff_core.data.module import OrderedData
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.samples import RawSamples
from unidiff_core.data.shard import MANIFEST
from unidiff_core.network.uvit import UViT

from . import cases

Image, Text = cases.PictureSizeCodec, cases.TextSizeCodec
CODECS = {"image": {"class_path": f"{Image.__module__}.{Image.__name__}"}}
CODECS |= {"text": {"class_path": f"{Text.__module__}.{Text.__name__}"}}


def encode_shards(source, target, *options):
    encode.run([f"--codecs={json.dumps(CODECS)}", f"--folders={json.dumps({str(source): str(target)})}", *options])


def samples(source):
    return {row["__key__"]: row for split in source.splits for row in source.samples(split)}


def raw_batches(where, **options):
    """One step of training on raw shards."""
    model = UniDiffuser(
        {"image": Modality(Image()), "text": Modality(Text())}, partial(UViT, width=8, depth=1, heads=1)
    )
    data = OrderedData(str(where), samples=RawSamples(**options), batch_size=2)
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    pl.Trainer(max_steps=3, max_epochs=-1, accelerator="cpu", limit_val_batches=0, **quiet).fit(model, datamodule=data)


# --- folders ---


def test_a_linked_subfolder_is_read_and_a_circle_is_not(tmp_path):
    cases.with_texts(tmp_path / "elsewhere", "blue")
    cases.with_texts(tmp_path / "folder/batch1")
    (tmp_path / "folder/batch2").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "folder/batch1/up").symlink_to(tmp_path / "folder", target_is_directory=True)
    with pytest.warns(UserWarning, match="batch2 leads to .*elsewhere: what is there is among the samples"):
        found = samples(FolderSource(str(tmp_path / "folder")))
    assert sorted(found) == [f"batch{i}/{j}_png" for i in (1, 2) for j in range(3)]
    assert found["batch2/1_png"]["txt"] == b"a blue 1"


def test_a_link_to_a_file_elsewhere_is_no_sample(tmp_path):
    cases.with_texts(tmp_path / "elsewhere", "blue")
    cases.with_texts(tmp_path / "folder")
    (tmp_path / "folder/own.png").symlink_to(next((tmp_path / "elsewhere").glob("*.png")))
    with pytest.raises(ValueError, match=r"own\.png is a link out of the folder, to .*Put a copy there"):
        samples(FolderSource(str(tmp_path / "folder")))


def parquet(path, captions):
    import datasets

    images = [{"bytes": cases.data(cases.picture(i)), "path": None} for i in range(len(captions))]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": images, "text": captions}, features=features).to_parquet(path)


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", ["data/{}-00000-of-00001.parquet", "{}.parquet", "{}/0.parquet"])
def test_parquet_files_of_several_splits_are_told_apart(no_cache, tmp_path, name):
    for split in ("train", "test"):
        parquet(tmp_path / "set" / name.format(split), [f"{split} {i}" for i in range(3)])
    for split in ("train", "test"):
        found = samples(DatasetSource(str(tmp_path / "set"), split=split))
        assert [row["txt"].decode() for _, row in sorted(found.items())] == [f"{split} {i}" for i in range(3)]
    with pytest.raises(ValueError, match="no split 'dev'; its Parquet files are of train, test"):
        samples(DatasetSource(str(tmp_path / "set"), split="dev"))


def test_parquet_files_of_no_split_are_counted(no_cache, tmp_path):
    for name in ("data/train-00000-of-00001", "data/test-00000-of-00001", "extra"):
        parquet(tmp_path / "set" / f"{name}.parquet", ["a", "b"])
    with pytest.warns(UserWarning, match="left out: 1 of 3 Parquet files"):
        samples(DatasetSource(str(tmp_path / "set")))


# --- shards ---


@pytest.mark.parametrize("missing", ["error", "keep"])
def test_an_unsorted_tar_says_how_to_sort_it(tmp_path, missing):
    cases.unsorted(tmp_path / "raw/0.tar")
    says = r"0\.tar is not sorted: \.png and \.txt of sample 0000 do not lie together.*tar --sort=name"
    with pytest.raises(ValueError, match=says):
        encode_shards(tmp_path / "raw", tmp_path / "out", f"--missing={missing}")
    with pytest.raises(ValueError, match=says):
        raw_batches(tmp_path / "raw")
    with pytest.raises(ValueError, match=says):
        PairData(str(tmp_path / "raw"), size=32).read()


def test_the_way_to_sort_a_tar_that_is_told_sorts_it(tmp_path, monkeypatch):
    import subprocess

    cases.unsorted(tmp_path / "raw/0.tar")
    with pytest.raises(ValueError) as error:
        list(read_shards(tmp_path / "raw"))
    command = str(error.value).partition("Sort it: ")[2].replace("SHARD", "raw/0.tar")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert [sorted(row)[1:] for row in read_shards(tmp_path / "raw")] == [["png", "txt"]] * 6


def test_pictures_of_several_endings(tmp_path):
    cases.mixed(tmp_path / "raw/0.tar")
    with pytest.raises(ValueError, match=r"no member \.png.*several: \{image: \[png, …\]\}"):
        encode_shards(tmp_path / "raw", tmp_path / "out")
    endings = ["JPG", "jpeg", "png", "webp"]
    encode_shards(tmp_path / "raw", tmp_path / "out", f'--members={{"image": {json.dumps(endings)}}}')
    rows = list(read_shards(tmp_path / "out"))
    assert [sorted(row) for row in rows] == [["__key__", "safetensors"]] * 6
    raw_batches(tmp_path / "raw", members={"image": endings})
    assert len(PairData(str(tmp_path / "raw"), size=32, image=endings).read()["text"]) == 6


def test_a_sample_of_two_pictures_is_named(tmp_path):
    content = cases.data(cases.picture(0))
    cases.tar(tmp_path / "raw/0.tar", [("7.jpg", content), ("7.png", content), ("7.txt", "a red 7")])
    members = {"image": ["jpg", "png"]}
    with pytest.raises(ValueError, match=r"sample 7 .* has \.jpg and \.png, of which a sample may have one"):
        encode_shards(tmp_path / "raw", tmp_path / "out", f"--members={json.dumps(members)}")
    with pytest.raises(ValueError, match=r"sample 7 .* has several of \.jpg or \.png"):
        raw_batches(tmp_path / "raw", members=members)


def test_training_on_raw_shards_says_what_is_missing(tmp_path, capsys):
    rows = [row for row in cases.pairs() if row[0] not in ("0001.txt", "0002.png", "0003.txt", "0003.png")]
    cases.tar(tmp_path / "raw/0.tar", [*rows, ("0009.json", "{}")])
    raw_batches(tmp_path / "raw")
    assert "raw: 5 samples, 1 without image, 1 without text; left out: 1 that have none of image, text" in (
        capsys.readouterr().out
    )


def test_training_on_latents_says_what_is_missing(tmp_path, capsys):
    cases.empty_captions(tmp_path / "raw/0.tar")
    encode_shards(tmp_path / "raw", tmp_path / "out", "--missing=keep")
    data = OrderedData(str(tmp_path / "out"), batch_size=2)
    capsys.readouterr()
    data.train_dataloader()
    assert "out: 6 samples, 2 without text" in capsys.readouterr().out


def test_counts_of_a_manifest_are_checked(tmp_path):
    cases.tar(tmp_path / "raw/0.tar", cases.pairs())
    encode_shards(tmp_path / "raw", tmp_path / "out")
    manifest = tmp_path / "out" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"count": 6', '"count": 7'))
    with pytest.raises(ValueError, match="counts 7 samples, and its shards hold 6"):
        OrderedData(str(tmp_path / "out"), batch_size=2).train_dataloader()


def test_encoding_no_sample_is_an_error_that_says_why(tmp_path):
    cases.tar(tmp_path / "raw/0.tar", [row for row in cases.pairs() if row[0].endswith("png")])
    keep = '--keep=[{"field": "width", "below": 1, "absent": "drop"}]'
    with pytest.raises(ValueError, match=r"(?s)nothing is encoded into .*0 of 6 samples.*6 dropped: no width"):
        encode_shards(tmp_path / "raw", tmp_path / "out", keep)
    assert not (tmp_path / "out" / MANIFEST).exists()
    cases.tar(tmp_path / "empty/0.tar", [])
    with pytest.raises(ValueError, match="0 of 0 samples"):
        encode_shards(tmp_path / "empty", tmp_path / "other")


# --- empty and broken members ---


def test_an_empty_caption_is_a_missing_one(tmp_path, capsys):
    cases.empty_captions(tmp_path / "raw/0.tar")
    with pytest.raises(ValueError, match=r"sample 0001 .*member \.txt for 'text' is empty.*missing=keep allows that"):
        encode_shards(tmp_path / "raw", tmp_path / "out")
    encode_shards(tmp_path / "raw", tmp_path / "out", "--missing=keep")
    assert cases.sizes(tmp_path / "out", "text") == [9.0, None, 11.0, 10.0, None, 9.0]
    raw_batches(tmp_path / "raw")
    with pytest.warns(UserWarning, match="left out: 2 of 6 samples"):
        assert len(CaptionData(str(tmp_path / "raw")).read()["text"]) == 4
    with pytest.warns(UserWarning, match="left out: 2 of 6 samples"):
        assert len(PairData(str(tmp_path / "raw"), size=32).read()["text"]) == 4


def test_a_blank_caption_is_still_no_value_of_a_query():
    for given in (lambda: TextCodec().parse(" "), lambda: TextCodec().from_bytes(b"\n")):
        with pytest.raises(ValueError, match="at least one word"):
            given()


def test_one_broken_picture_is_named_wherever_it_is_met(tmp_path):
    cases.corrupt(tmp_path / "raw/0.tar")
    says = r"sample '?0003'? of .*0\.tar.* not a readable image \(60 bytes\)"
    with pytest.raises(ValueError, match=says):
        ImageData(str(tmp_path / "raw"), size=32).read()
    with pytest.raises(ValueError, match=says):
        raw_batches(tmp_path / "raw")
    with pytest.raises(ValueError, match=says):
        encode_shards(tmp_path / "raw", tmp_path / "out")
