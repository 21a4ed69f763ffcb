"""Images with captions from folders and Hugging Face data sets, to shards and straight into training."""

from __future__ import annotations

import json
import warnings
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load
from unidiff_codecs.image import ImageCodec
from unidiff_codecs.source import DatasetSource, FolderSource
from unidiff_codecs.text import TextCodec

from unidiff_core import Modality, UniDiffuser
from unidiff_core.cli import encode
from unidiff_core.cli import shards as shards_command
from unidiff_core.data.damage import Tally
from unidiff_core.data.encoding import RawReader, SampleEncoder
from unidiff_core.data.module import OrderedData
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.samples import RawSamples, SourceSamples, StoredSamples
from unidiff_core.data.shard import STORED
from unidiff_core.network.uvit import UViT

from .conftest import CAPTIONS, picture, png


def jpeg(i):
    import io

    stream = io.BytesIO()
    picture(i, (40, 32)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Pictures with captions beside them, and in a subfolder with metadata."""
    root = tmp_path / "pictures"
    (root / "more/.cache").mkdir(parents=True)
    (root / "more/.cache/x.png").write_bytes(b"hidden")
    for i in range(12):
        (root / f"a.{i}.JPG").write_bytes(jpeg(i))
        (root / f"a.{i}.txt").write_text(f" {CAPTIONS[i]}\n")
    lines = []
    for i in range(12, 20):
        (root / f"more/{i}.png").write_bytes(png(picture(i)))
        lines.append(json.dumps({"file_name": f"{i}.png", "text": CAPTIONS[i % 16], "artist": "Søren", "score": i}))
    (root / "more/metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


def rows(source):
    return {split: {row["__key__"]: row for row in source.samples(split)} for split in source.splits}


def test_a_folder_of_images(folder):
    source = FolderSource(str(folder), validation=0.3)
    splits = rows(source)
    assert source.splits == {split: len(found) for split, found in splits.items()}
    assert set(splits) == {"train", "validation"} and sum(source.splits.values()) == 20
    both = splits["train"] | splits["validation"]
    assert both["a_3_JPG"]["txt"].decode() == CAPTIONS[3] and both["a_3_JPG"]["png"] == jpeg(3)
    assert json.loads(both["more/15_png"]["json"]) == {"file_name": "more/15.png", "artist": "Søren", "score": 15}
    (folder / "a.0.JPG").unlink()
    (folder / "a.0.txt").unlink()
    again = rows(FolderSource(str(folder), validation=0.3))
    assert all(set(again[split]) <= set(splits[split]) for split in splits), "no sample changed sides"
    assert FolderSource(str(folder), validation=0).splits == {"train": 19}


def test_what_is_no_image_is_listed(folder):
    (folder / "notes.docx").touch()
    (folder / "stray.txt").touch()
    says = r"ignored in .*: 1 \.docx, 1 \.txt without an image \(notes\.docx, stray\.txt\)"
    with pytest.warns(UserWarning, match=says):
        assert FolderSource(str(folder)).splits


def test_images_without_caption(folder):
    (folder / "more/lonely.webp").write_bytes(png(picture(0)))
    (folder / "a.1.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"2 of 21 .*a\.1\.JPG \(no caption\), more/lonely\.webp .*unpaired=skip"):
        _ = FolderSource(str(folder)).splits
    with pytest.warns(UserWarning, match=r"left out: 2 of 21"):
        assert FolderSource(str(folder), validation=0, unpaired="skip").splits == {"train": 19}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = rows(FolderSource(str(folder), validation=0, unpaired="keep"))["train"]
    assert len(kept) == 21 and "txt" not in kept["more/lonely_webp"]


def broken(folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "more/metadata.jsonl",
            b'{"file_name": "no.png", "text": "x"}',
            r"metadata\.jsonl, line 1: there is no file .*no\.png",
        ),
        ("more/metadata.jsonl", b"\nno json", r"metadata\.jsonl, line 2: Expecting value"),
        ("more/metadata.jsonl", b'{"text": "x"}', r"line 1 is no .*file_name"),
        ("a.2.txt", b"\xff\x00", r"a\.2\.txt is not a text in UTF-8"),
        ("a_2.JPG", jpeg(0), r"would have one key in a shard, a_2_JPG"),
    ],
)
def test_a_folders_mistakes_are_named(folder, name, content, says):
    broken(folder, name, content)
    (folder / "a_2.txt").write_text("twice")
    with pytest.raises(ValueError, match=says), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _ = FolderSource(str(folder)).splits


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        _ = FolderSource(str(tmp_path / "nowhere")).splits
    with pytest.raises(ValueError, match=r"no images in .*none of its 0 files ends in \.png"):
        _ = FolderSource(str(tmp_path)).splits
    with pytest.raises(ValueError, match="share of the samples"):
        FolderSource(str(tmp_path), validation=1.0)
    with pytest.raises(ValueError, match="no split 'test'"):
        list(FolderSource(str(tmp_path)).samples("test"))


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    images = [{"bytes": png(picture(i)), "path": f"{i}.png" if i % 2 else None} for i in range(12)]
    columns = {"picture": [*images, None], "words": [*CAPTIONS[:12], "alone"], "score": [i / 2 for i in range(13)]}
    kinds = {"picture": datasets.Image(), "words": datasets.Value("string"), "score": datasets.Value("float64")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


COLUMNS = {"image": "picture", "caption": "words"}


@pytest.mark.parametrize("form", ["saved", "saved with splits", "parquet", "parquet folder"])
def test_a_hugging_face_data_set(dataset, tmp_path, form):
    import datasets

    path = tmp_path / "set"
    if form == "saved":
        dataset.save_to_disk(path)
    elif form == "saved with splits":
        datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(path)
    else:
        path.mkdir()
        for i in range(2):
            dataset.select(range(7 * i, min(7 * i + 7, 13))).to_parquet(path / f"{i}.parquet")
        if form == "parquet":
            dataset.to_parquet(path := tmp_path / "set.parquet")
    source = DatasetSource(str(path), **COLUMNS, validation=0, unpaired="skip")
    with pytest.warns(UserWarning, match=r"left out: 1 of 13 .*row 12 \(no image\)"):
        found = rows(source)["train"]
    assert list(found) == [f"{i:08d}" for i in range(12)]
    assert found["00000005"] == {
        **{"__key__": "00000005", "png": png(picture(5)), "txt": CAPTIONS[5].encode(), "json": b'{"score": 2.5}'}
    }
    kept = rows(DatasetSource(str(path), **COLUMNS, validation=0, unpaired="keep"))["train"]
    assert kept["00000012"] == {"__key__": "00000012", "txt": b"alone", "json": b'{"score": 6.0}'}
    with pytest.raises(ValueError, match=r"1 of 13 samples are not pairs: row 12 \(no image\)"):
        _ = DatasetSource(str(path), **COLUMNS).splits


def test_images_by_path_are_read_from_the_folder_that_is_allowed_alone(tmp_path):
    import datasets
    import pyarrow.parquet

    own, other = tmp_path / "set", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "a.png").write_bytes(png(picture(1)))
    (own / "link.png").symlink_to(other / "a.png")

    def found(*paths, **options):
        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        images = [{"bytes": None, "path": str(row)} for row in paths]
        rows = datasets.Dataset.from_dict({"image": images, "text": ["a"]}, features)
        pyarrow.parquet.write_table(rows.data.table, own / "0.parquet")
        return list(DatasetSource(str(own), validation=0, **options).samples("train"))

    for inside in ("a.png", own / "a.png"):
        assert found(inside)[0]["png"] == png(picture(1))
    for outside in (other / "a.png", "../other/a.png", "link.png", "/etc/passwd", own / "../other/a.png"):
        with pytest.raises(
            ValueError, match=r"row 0: its image is .*, which is outside of .*; if these are your images"
        ):
            found(outside)
    assert found(other / "a.png", image_folder=str(other))[0]["png"] == png(picture(1))
    assert found("a.png", image_folder=str(other))[0]["png"] == png(picture(1))


def test_a_data_sets_mistakes_are_named(dataset, tmp_path):
    import datasets

    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "set")
    for options, says in (
        ({}, "has no column image or text; it has picture, words, score"),
        (COLUMNS | {"split": "dev"}, "no split 'dev'; it has train"),
        (COLUMNS | {"image": "score"}, "the column 'score' .* holds no images, but Value"),
    ):
        with pytest.raises(ValueError, match=says):
            _ = DatasetSource(str(tmp_path / "set"), **options).splits
    for nowhere in (tmp_path / "nowhere", tmp_path / "nowhere.parquet", tmp_path):
        if nowhere != tmp_path:
            with pytest.raises(ValueError, match="no data set in"):
                _ = DatasetSource(str(nowhere)).splits


# --- into training ---


def losses(data, modalities, tmp_path):
    torch.manual_seed(0)
    model = UniDiffuser(modalities, partial(UViT, width=16, depth=3, heads=2))
    seen = []
    callback = pl.Callback()
    callback.on_train_batch_end = lambda trainer, module, outputs, *_: seen.append(float(outputs["loss"]))
    trainer = pl.Trainer(
        **{"max_steps": 1, "max_epochs": -1, "accelerator": "cpu", "logger": False, "callbacks": [callback]},
        **{"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False},
        default_root_dir=tmp_path,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=data)
    return seen


def test_a_folder_trains_alike_from_stored_latents_raw_shards_and_itself(
    folder, tmp_path, image_arguments, text_arguments
):
    (folder / "more/lonely.png").write_bytes(png(picture(30)))
    options = ["--source.folder", str(folder), "--source.unpaired=keep", "--shard_size=6"]
    shards_command.run(["--source", "FolderSource", *options, "--output", str(tmp_path / "shards")])
    codecs = {"image": ("ImageCodec", image_arguments), "text": ("TextCodec", text_arguments)}
    config = {name: {"class_path": cls, "init_args": init} for name, (cls, init) in codecs.items()}
    raw, stored = str(tmp_path / "shards/train"), str(tmp_path / "latents/train")
    encode.run(["--codecs", json.dumps(config), "--folders", json.dumps({raw: stored}), "--missing=keep"])

    modalities = {"image": Modality(ImageCodec(**image_arguments)), "text": Modality(TextCodec(**text_arguments))}
    expected = losses(OrderedData(stored, batch_size=8), modalities, tmp_path)
    for where, samples in (
        (stored, StoredSamples(in_memory=False)),
        (raw, RawSamples()),
        ("train", SourceSamples(FolderSource(str(folder), unpaired="keep"), missing="keep")),
    ):
        data = OrderedData(where, samples=samples, batch_size=8)
        assert losses(data, modalities, tmp_path) == pytest.approx(expected, rel=1e-6)


def test_what_is_stored_of_a_sample_depends_on_that_sample_alone(shards, image_arguments, text_arguments):
    reader = RawReader({"image": ImageCodec(**image_arguments), "text": TextCodec(**text_arguments)})

    def stored(batch_size):
        encoder = SampleEncoder(reader, batch_size)
        return [load(row[STORED]) for row in encoder.samples(read_shards(shards), "shards", Tally())]

    for one, many in zip(stored(1), stored(32), strict=True):
        for key in one:
            # The same but for rounding: a convolution adds up in another order in a batch of another size.
            assert (one[key] - many[key]).abs().max() <= 1e-4 * many[key].abs().max(), key
