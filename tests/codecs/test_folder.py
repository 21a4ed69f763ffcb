"""A folder as people keep it: whatever of it is damaged, ambiguous or not used is counted and named."""

from __future__ import annotations

import json
import warnings

import pytest
from PIL import Image
from unidiff_codecs.image import ImageCodec
from unidiff_codecs.picture import as_rgb, open_image, why_unreadable
from unidiff_codecs.source import DatasetSource, FolderSource
from unidiff_codecs.table import TableSource
from unidiff_codecs.text import TextCodec

from unidiff_core import Waveform
from unidiff_core.cli import shards as shards_command
from unidiff_core.data.salvage import read_shards

from . import cases


def source_of(folder, **options):
    return FolderSource(str(folder), validation=0, **options)


def captions(source):
    """Image's file name → its captions, and what was told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rows = list(source.samples("train"))
    names = [json.loads(row["json"])["file_name"] for row in rows]
    texts = [[row[name].decode() for name in row if "txt" in name] for row in rows]
    return dict(zip(names, texts, strict=True)), [str(row.message) for row in told]


@pytest.fixture
def folder(tmp_path):
    return cases.with_texts(tmp_path / "folder")


# --- damaged images ---


def halved(format, **options):
    content = cases.data(cases.picture(0, (64, 64)), format, **options)
    return content[: len(content) // 2]


DAMAGED = {
    "empty.jpg": b"",
    "half.jpg": halved("JPEG", quality=95),
    "progressive.jpg": halved("JPEG", quality=95, progressive=True),
    "half.png": halved("PNG"),
    "half.webp": halved("WEBP", lossless=True),
    "half.gif": halved("GIF"),
    "half.bmp": halved("BMP"),
    "half.tif": halved("TIFF"),
    "page.png": b"<!DOCTYPE html>",
    "float.tif": cases.data(Image.new("F", (2, 2)), "TIFF"),
}


def with_damaged(folder):
    for name, content in DAMAGED.items():
        cases.write(folder / name, content)
        cases.write((folder / name).with_suffix(".txt"), "a damaged one")
    return folder


def test_a_damaged_image_is_seen_wherever_it_would_be_when_it_is_opened():
    whole = [cases.phone(), cases.cutout(), cases.grey16(), cases.data(cases.picture(0), "GIF")]
    found = list(why_unreadable(lambda content=content: content for content in [*DAMAGED.values(), *whole]))
    assert all(found[: len(DAMAGED)]) and found[len(DAMAGED) :] == [None] * 4
    for content, why in zip(DAMAGED.values(), found, strict=False):
        with pytest.raises(ValueError) as error:
            open_image(content)
        assert str(error.value).partition(":")[0] == why.partition(":")[0]


@pytest.mark.filterwarnings("ignore:images that share")
def test_damaged_images_are_counted_and_named_before_a_shard_is_written(folder, tmp_path, capsys):
    with_damaged(folder)
    options = [
        "--source=FolderSource",
        f"--source.folder={folder}",
        "--source.validation=0",
        f"--output={tmp_path}/out",
    ]
    says = r"10 of 13 images cannot be read: empty\.jpg \(not a readable image \(0 .*--source\.damaged=skip leaves"
    with pytest.raises(ValueError, match=says):
        shards_command.run(options)
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="left out: 10 of 13 images cannot be read"):
        shards_command.run([*options, "--source.damaged=skip"])
    assert "3 samples in 1 shard\n" in capsys.readouterr().out
    assert len(list(read_shards(tmp_path / "out/train"))) == 3
    assert len(captions(source_of(folder, damaged="keep"))[0]) == 13


def test_damaged_images_of_a_data_set_are_named_by_row(tmp_path, monkeypatch):
    import datasets
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    images = [{"bytes": content, "path": None} for content in (cases.upright(), DAMAGED["half.jpg"])]
    images.append({"bytes": None, "path": "absent.png"})
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": images, "text": ["a"] * 3}, features)
    pyarrow.parquet.write_table(rows.data.table, path := tmp_path / "set.parquet")
    with pytest.raises(ValueError, match=r"2 of 3 images cannot be read: row 1 \(not a.*row 2 \(No such file"):
        _ = DatasetSource(str(path)).splits
    with pytest.warns(UserWarning, match="left out: 2 of 3 images"):
        assert DatasetSource(str(path), validation=0, damaged="skip").splits == {"train": 1}
    with pytest.raises(ValueError, match="damaged is one of error, keep, skip, not 'no'"):
        DatasetSource(str(path), damaged="no")


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_what_has_no_pixel_or_sample_is_none(size):
    with pytest.raises(ValueError, match=rf"an image of {size[0]} × {size[1]} pixels; it has at least one each way"):
        ImageCodec().encode([Image.new("RGB", size)])
    with pytest.raises(ValueError, match="at least one each way"):
        as_rgb(Image.new("L", size))
    with pytest.raises(ValueError, match="at least one sample"):
        Waveform([], 8000)


# --- captions that could be meant otherwise ---


def test_of_two_captions_of_an_image_it_is_told_which_is_used(folder):
    cases.write(folder / "metadata.csv", "file_name,text\n1.png,from the table\n2.png,\n")
    found, told = captions(source_of(folder))
    assert found == {"0.png": ["a red 0"], "1.png": ["from the table"], "2.png": ["a red 2"]}
    assert told == ["text files not used, as the metadata have captions: 1 of 3 (1.png)"]


def test_images_of_one_stem_share_a_caption_and_it_is_told(folder):
    cases.write(folder / "1.jpg", cases.upright())
    found, told = captions(source_of(folder))
    assert found["1.jpg"] == found["1.png"] == ["a red 1"]
    assert told == ["images that share their text file, and its caption, with another: 2 (1.jpg, 1.png)"]


def test_lines_of_a_text_file_are_one_caption_or_one_each(folder):
    cases.write(folder / "1.txt", "a red 1\r\n\r\nthe red 1\n")
    cases.write(folder / "2.txt", "a red 2\n\n")
    found, told = captions(source_of(folder))
    assert found["1.png"] == ["a red 1\n\nthe red 1"] and len(told) == 1
    assert told[0].startswith("text files of several lines, each one caption with line breaks: 1 of 3 (1.txt)")
    found, told = captions(source_of(folder, caption_per_line=True))
    assert found == {"0.png": ["a red 0"], "1.png": ["a red 1", "the red 1"], "2.png": ["a red 2"]}
    assert told == ["1 of 3 samples have several captions: all are kept, and one is drawn at each use"]


def test_endings_in_capitals(folder):
    for name in ("UP.JPG", "UP.TXT", "both.png", "both.TXT", "both.txt"):
        cases.write(folder / name, cases.upright() if name[-3:] in ("JPG", "png") else name)
    cases.write(folder / "more/METADATA.CSV", "file_name,text\n3.png,a red 3\n")
    cases.write(folder / "more/3.png", cases.upright())
    found, told = captions(source_of(folder))
    assert (found["UP.JPG"], found["both.png"], found["more/3.png"]) == (["UP.TXT"], ["both.txt"], ["a red 3"])
    assert told == [f"ignored in {folder}: 1 .txt without an image (both.TXT)"]


def test_what_metadata_say_and_is_not_used_is_told(folder):
    cases.write(folder / "notes.md", "x")
    rows = [("0.png", "one", 1), ("0.png", "two", 2), ("notes.md", "three", 3)]
    fields = ("file_name", "text", "id")
    cases.write(folder / "metadata.jsonl", cases.jsonl([dict(zip(fields, row, strict=True)) for row in rows]))
    told = captions(source_of(folder))[1]
    assert told[1].startswith("further lines of an image, of which captions are used, other fields are not: 1 (")
    assert told[3] == "left out: what the metadata name, but is none of the 3 images: 1 (notes.md)"


# --- tables and texts as spreadsheets and Windows write them ---


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("file_name;text\n0.png;a\n", r"is separated by semicolons \(file_name;text\), not by commas"),
        ("file_name\ttext\n0.png\ta\n", r"is separated by tabs"),
        ("image,caption\n0.png,a\n", r"choose: --source\.file_name=image --source\.text=caption$"),
        ("id,caption\n0,a\n", r"chosen by --source\.file_name$"),
        ("file_name,text,text\n0.png,a,b\n", r"has the column 'text' twice"),
    ],
)
def test_tables_of_other_forms_are_named_with_the_way_out(folder, table, says):
    cases.write(folder / "metadata.csv", table)
    with pytest.raises(ValueError, match=says):
        _ = source_of(folder).splits


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_another_field_of_file_names(tmp_path, form):
    folder = cases.folder(tmp_path / "folder", 2)
    rows = [{"image": f"{i}.png", "caption": f"a red {i}", "artist": "x"} for i in range(2)]
    lines = ["image,caption,artist", *(",".join(row.values()) for row in rows)]
    cases.write(folder / f"metadata.{form}", "\n".join(lines) if form == "csv" else cases.jsonl(rows))
    with pytest.raises(ValueError, match=r"choose: --source\.file_name=image --source\.text=artist"):
        _ = source_of(folder).splits
    source = source_of(folder, file_name="image", text="caption")
    assert captions(source) == ({"0.png": ["a red 0"], "1.png": ["a red 1"]}, [])
    assert json.loads(source.members("1_png")["json"]) == {"artist": "x", "file_name": "1.png"}


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("utf-16", r"in UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
        ("utf-32", r"in UTF-32; convert it"),
        ("utf-16-le", r"in UTF-16LE; convert it"),
        ("utf-16-be", r"in UTF-16BE; convert it"),
        ("cp1252", r"\(byte 0xe9 at 5\).*iconv -f CP1252"),
    ],
)
def test_texts_of_other_encodings_are_named_with_the_way_to_convert_them(tmp_path, encoding, says):
    content = "a café, red\n".encode(encoding)
    for name in ("1.txt", "metadata.csv", "metadata.jsonl"):
        folder = cases.with_texts(tmp_path / encoding / name)
        cases.write(folder / name, content)
        with pytest.raises(ValueError, match=rf"{name} is not a text in UTF-8 .*{says}"):
            _ = source_of(folder).splits
    with pytest.raises(ValueError, match=says):
        TextCodec().from_bytes(content)
    cases.write(tmp_path / "table.csv", content)
    with pytest.raises(ValueError, match=rf"table\.csv is not a text in UTF-8 .*{says}"):
        _ = TableSource(str(tmp_path / "table.csv")).splits


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("a;b\n1;2\n3;4\n", r"is separated by semicolons"),
        ("a,a\n1,2\n3,4\n", r"has the column 'a' twice"),
        ("a b,a-b\n1,2\n3,4\n", r"two columns are called 'a_b', one of them 'a-b'"),
        ('a,b\n"1"2,3\n', r"line 2: ',' expected"),
    ],
)
def test_numbers_in_tables_of_other_forms(tmp_path, table, says):
    cases.write(tmp_path / "table.csv", table)
    with pytest.raises(ValueError, match=says):
        _ = TableSource(str(tmp_path / "table.csv")).splits
