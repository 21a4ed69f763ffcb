"""Captions as people keep them beside their pictures: lines of JSON, tables, lists, other fields."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from unidiff_codecs.source import DatasetSource, FolderSource
from unidiff_codecs.text import TextCodec
from unidiff_codecs.tokens import Tokens, TokensCodec
from unidiff_codecs.training import PairData

from tests.command import run_command
from unidiff_core.cli import shards as shards_command
from unidiff_core.data.module import OrderedData
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.shard import alternatives_of

from . import cases


def written(folder, target, *options):
    """What `unidiffuser shards` writes of a folder: a caption, none, or a list of several, and the labels of each."""
    source = ["--source=FolderSource", f"--source.folder={folder}", "--source.validation=0"]
    shards_command.run([*source, *options, f"--output={target}"])
    rows = list(read_shards(target / "train"))
    captions = [[row[name].decode() for name in alternatives_of(row, "txt")] for row in rows]
    shown = [found if len(found) > 1 else next(iter(found), None) for found in captions]
    return shown, [json.loads(row["json"]) for row in rows]


def test_a_list_of_captions_is_several_captions(tmp_path):
    folder = cases.with_metadata(tmp_path / "folder", text=lambda i: [f"a red {i}", f"the red {i}"])
    with pytest.warns(UserWarning, match="6 of 6 samples have several captions"):
        captions, labels = written(folder, tmp_path / "out")
    assert captions == [[f"a red {i}", f"the red {i}"] for i in range(6)]
    assert labels[3] == {"file_name": "3.png"}


def test_all_of_several_captions_are_trained_on(tmp_path):
    """From the folder through `shards`, `fit-codec` and `encode` to the batches of a training."""
    folder = cases.with_metadata(tmp_path / "folder", text=lambda i: [f"a red {i}", f"the red {i}"])
    with pytest.warns(UserWarning, match="all are kept, and one is drawn at each use"):
        written(folder, tmp_path / "shards")
    shards, latents = str(tmp_path / "shards/train"), str(tmp_path / "latents")
    pairs = PairData(shards, size=32, batch_size=6, holdout=0.2)
    pairs.setup()
    loader, seen = pairs.train_dataloader(), set()
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        seen.update(text for batch in loader for text in batch["text"])
    assert seen == {f"{word} red {i}" for word in ("a", "the") for i in range(5)}
    assert [text for batch in pairs.val_dataloader() for text in batch["text"]] == ["a red 5"]
    options = ("--data=CaptionData", f"--data.folder={shards}", "--data.holdout=0.3", "--output", tmp_path / "tokens")
    done = run_command("fit-codec", "--model=TokensTraining", "--model.kind=bpe", *options)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "tokens/metrics.json").read_text())["exact"] == 1.0
    size = Tokens.read(str(tmp_path / "tokens")).size
    codec = {"class_path": "TokensCodec", "init_args": {"tokenizer": str(tmp_path / "tokens"), "vocabulary": size}}
    done = run_command("encode", "--codecs", json.dumps({"text": codec}), "--folders", json.dumps({shards: latents}))
    assert "6 of 6 samples\n  6 with several text: one is drawn at each use" in done.out
    data = OrderedData(latents, latents, batch_size=60)

    def shown(loader):
        texts = TokensCodec(**codec["init_args"]).decode
        return [texts({"ids": batch.stored["text.ids"]}) for batch in loader]

    assert shown(data.val_dataloader()) == [[f"a red {i}" for i in range(6)]]
    data = OrderedData(latents, batch_size=6)
    data.trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1, lightning_module=None)
    data.trainer.strategy = SimpleNamespace(root_device="cpu")
    drawn = set()
    for data.trainer.global_step in range(12):
        drawn.update(*shown(data.train_dataloader()))
    assert drawn == {f"{word} red {i}" for word in ("a", "the") for i in range(6)}


def test_several_lines_of_one_picture_are_several_captions(tmp_path):
    folder = cases.with_metadata(tmp_path / "folder", text=lambda i: f"a red {i}")
    rows = [{"file_name": f"{i}.png", "text": f"{word} red {i}"} for i in range(6) for word in ("a", "the")]
    cases.write(folder / "metadata.jsonl", cases.jsonl(rows))
    with pytest.warns(UserWarning, match="6 of 6 samples have several captions"):
        captions, labels = written(folder, tmp_path / "out")
    assert captions[2] == ["a red 2", "the red 2"] and labels[2] == {"file_name": "2.png"}


@pytest.mark.parametrize("value", [5, 2.5, True, {"en": "a red"}, ["a red", 5], [["a red"]]])
def test_what_is_no_text_is_an_error_that_names_the_row(tmp_path, value):
    folder = cases.with_metadata(tmp_path / "folder", text=lambda i: value if i == 3 else "a red")
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 4: a caption is a text or a list of texts, not"):
        _ = FolderSource(str(folder)).splits


@pytest.mark.parametrize("value", [None, "", " \n", [], [None, " "], float("nan")])
def test_what_is_missing_is_missing(tmp_path, value):
    folder = cases.with_metadata(tmp_path / "folder", text=lambda i: value if i == 3 else "a red")
    with pytest.raises(ValueError, match=r"1 of 6 samples are not pairs: 3\.png \(no caption\)"):
        _ = FolderSource(str(folder)).splits


@pytest.mark.parametrize(("values", "says"), [([["a", "b"], ["c"]], None), ([1, 2], "row 0: a caption is a text")])
def test_columns_of_a_data_set(tmp_path, values, says):
    import datasets

    datasets.disable_progress_bars()
    images = [{"bytes": cases.data(cases.picture(i)), "path": None} for i in range(2)]
    rows = datasets.Dataset.from_dict({"image": images, "text": values}).cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path / "set")
    source = DatasetSource(str(tmp_path / "set"), validation=0)
    if says:
        with pytest.raises(ValueError, match=says):
            _ = source.splits
        return
    with pytest.warns(UserWarning, match="1 of 2 samples have several captions"):
        found = list(source.samples("train"))
    assert [(row["txt"], row.get("1.txt")) for row in found] == [(b"a", b"b"), (b"c", None)]
    assert [json.loads(row["json"]) for row in found] == [{}, {}]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_line_separators_of_unicode_are_letters_of_a_caption(tmp_path, sign):
    rows = [{"file_name": f"{i}.png", "text": f"a red {i}{sign}on blue"} for i in range(3)]
    folder = cases.folder(tmp_path / "folder", 3)
    lines = [json.dumps(row, ensure_ascii=sign < " ") for row in rows]
    cases.write(folder / "metadata.jsonl", "\n".join(lines) + "\r\n")
    captions, _ = written(folder, tmp_path / "out")
    assert captions == [row["text"] for row in rows]
    codec = TextCodec()
    for i, caption in enumerate(captions):  # a batch each
        codec.save([caption], tmp_path, first_index=i)
    saved = (tmp_path / "texts.jsonl").read_text().rstrip("\n").split("\n")
    assert [json.loads(line)["text"] for line in saved] == captions


def test_a_table_of_captions(tmp_path):
    folder = cases.folder(tmp_path / "folder")
    lines = "".join(f'{i}.png,"a red {i}, ""on""\nblue",{i}\n' for i in range(6))
    cases.write(folder / "metadata.csv", "\ufefffile_name,text,score\n" + lines)
    captions, labels = written(folder, tmp_path / "out")
    assert captions[3] == 'a red 3, "on"\nblue' and labels[3] == {"file_name": "3.png", "score": "3"}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("name,text\n0.png,a\n", r"has no column file_name, only name, text; choose: --source\.file_name=name$"),
        ("", r"has no column file_name, only nothing"),
        ("file_name,text\n0.png,a red, on blue\n", r"metadata\.csv, line 2 has not the 2 cells.*quote"),
        ("file_name,text\n0.png\n", r"line 2 has not the 2 cells"),
        ("file_name,text\nno.png,a\n", r"line 2: there is no file .*no\.png"),
    ],
)
def test_a_tables_mistakes_are_named(tmp_path, table, says):
    cases.write(cases.folder(tmp_path / "folder") / "metadata.csv", table)
    with pytest.raises(ValueError, match=says):
        _ = FolderSource(str(tmp_path / "folder")).splits


def test_another_field_is_named_with_the_option_that_chooses_it(tmp_path):
    folder = cases.with_metadata(tmp_path / "folder", caption=lambda i: f"a red {i}")
    says = r"no field 'text' but file_name, caption: choose one, --source\.text=caption"
    with pytest.raises(ValueError, match=says):
        written(folder, tmp_path / "out")
    for unpaired in ("skip", "keep"):
        with pytest.warns(UserWarning, match=says):
            _ = FolderSource(str(folder), unpaired=unpaired).names
    assert written(folder, tmp_path / "out", "--source.text=caption")[0][4] == "a red 4"


def test_what_is_hidden_is_left_out(tmp_path):
    folder = cases.with_metadata(tmp_path / "folder", text=lambda i: f"a red {i}")
    cases.write(folder / ".trash/metadata.jsonl", cases.jsonl([{"file_name": "gone.png", "text": "gone"}]))
    assert written(folder, tmp_path / "out")[0] == [f"a red {i}" for i in range(6)]


def test_metadata_of_a_folder_above_and_outside(tmp_path):
    folder = cases.folder(tmp_path / "folder/a")
    cases.folder(tmp_path / "b")
    rows = [{"file_name": f"../a/{i}.png", "text": f"a red {i}"} for i in range(6)]
    cases.write(folder.parent / "meta/metadata.jsonl", cases.jsonl(rows))
    assert written(folder.parent, tmp_path / "out")[0][5] == "a red 5"
    cases.write(folder.parent / "meta/metadata.jsonl", cases.jsonl([{"file_name": "../../b/0.png", "text": "a red"}]))
    with pytest.raises(ValueError, match=r"line 1: .*b/0\.png is not in "):
        _ = FolderSource(str(folder.parent)).splits
