"""A command replaces only what it wrote itself, and notices when what it was made from has changed."""

from __future__ import annotations

import json
import os

import pytest

from unidiff_core.cli import encode, fit_codec
from unidiff_core.cli import shards as shards_command
from unidiff_core.data.location import list_shards
from unidiff_core.data.salvage import read_shards

from . import cases

CODECS = {name: {"class_path": f"{__name__}.{cls}"} for name, cls in (("image", "Bytes"), ("text", "Words"))}


class Bytes(cases.SizeCodec):
    extension = "png"


class Words(cases.SizeCodec):
    extension = "txt"


def write_shards(source, target, *options):
    arguments = ["--source=FolderSource", f"--source.folder={source}", "--source.validation=0", f"--output={target}"]
    shards_command.run([*arguments, "--shard_size=2", *options])


def encode_shards(source, target, *options):
    encode.run([f"--codecs={json.dumps(CODECS)}", f"--folders={json.dumps({str(source): str(target)})}", *options])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    return cases.with_texts(tmp_path / "folder", num=6)


@pytest.fixture
def raw(folder, tmp_path):
    write_shards(folder, tmp_path / "raw")
    return tmp_path / "raw/train"


# --- only its own ---


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
@pytest.mark.parametrize("inside", [".", "..", "link"])
def test_latents_never_go_where_their_source_is(raw, tmp_path, options, inside):
    (tmp_path / "link").symlink_to(raw, target_is_directory=True)
    target = tmp_path / "link" if inside == "link" else raw / inside
    before = content(raw)
    with pytest.raises(ValueError, match=r"holds the source .*00000\.tar"):
        encode_shards(raw, target, *options)
    assert content(raw) == before


def test_latents_never_go_where_another_source_of_the_command_is(raw, folder, tmp_path):
    write_shards(folder, tmp_path / "second", "--shard_size=5")
    folders = {str(raw): str(tmp_path / "second/train"), str(tmp_path / "second/train"): str(tmp_path / "out")}
    before = content(tmp_path / "second")
    with pytest.raises(ValueError, match="holds the source"):
        encode.run([f"--codecs={json.dumps(CODECS)}", f"--folders={json.dumps(folders)}"])
    assert content(tmp_path / "second") == before


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_latents_never_replace_raw_shards(raw, folder, tmp_path, options):
    write_shards(folder, tmp_path / "second")
    before = content(tmp_path / "second")
    with pytest.raises(ValueError, match=r"holds what `unidiffuser encode` did not write, .*00000\.tar"):
        encode_shards(raw, tmp_path / "second/train", *options)
    assert content(tmp_path / "second") == before


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
@pytest.mark.parametrize("has_recipe", [False, True])
def test_shards_never_replace_a_strangers(folder, tmp_path, options, has_recipe):
    if has_recipe:
        write_shards(folder, tmp_path / "out")
    cases.tar(tmp_path / "out/train/mine.tar", cases.pairs())
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds what `unidiffuser shards` did not write, 1: .*mine\.tar"):
        write_shards(folder, tmp_path / "out", *options)
    assert content(tmp_path / "out") == before


def test_shards_never_replace_latents(raw, folder, tmp_path):
    encode_shards(raw, tmp_path / "latents/train")
    before = content(tmp_path / "latents")
    with pytest.raises(ValueError, match="did not write"):
        write_shards(folder, tmp_path / "latents", "--overwrite")
    assert content(tmp_path / "latents") == before


def test_shards_never_go_where_their_source_is(tmp_path):
    source = cases.with_texts(tmp_path / "mine/train/pictures")
    with pytest.raises(ValueError, match="which the source reads"):
        write_shards(source, tmp_path / "mine")


@pytest.mark.parametrize("name", ["thesis", "thesis.partial"])
@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_a_network_never_replaces_a_strangers_folder(shards, tmp_path, name, options, capsys):
    cases.write(tmp_path / name / "chapter1.tex", "years of work")
    with pytest.raises(ValueError, match=r"thesis(\.partial)? is .*(give another --output|move it away)"):
        fit_codec.run([*cases.autoencoder_options(shards, tmp_path / "thesis"), *options])
    assert (tmp_path / name / "chapter1.tex").is_file() and "overwrite" not in capsys.readouterr().out


def test_a_network_leaves_what_was_put_beside_it_and_is_readable_by_all(shards, tmp_path, capsys):
    options = cases.autoencoder_options(shards, tmp_path / "ae")
    fit_codec.run(options)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "ae").iterdir())
    cases.write(tmp_path / "ae/notes.md", "mine")
    with pytest.raises(ValueError, match=r"did not write, 1: notes\.md"):
        fit_codec.run([*options, "--overwrite"])
    (tmp_path / "ae/notes.md").unlink()
    fit_codec.run([*options, "--overwrite"])
    assert "removing what was trained before" in capsys.readouterr().out


def test_what_is_removed_is_named(raw, folder, tmp_path, capsys):
    encode_shards(raw, tmp_path / "latents")
    capsys.readouterr()
    encode_shards(raw, tmp_path / "latents", "--overwrite")
    assert "removing what was encoded before, 7: " in capsys.readouterr().out
    write_shards(folder, tmp_path / "raw", "--overwrite")
    assert "removing what was written before, 4: manifest.json, 00000.tar" in capsys.readouterr().out


# --- never stale ---


def keys(folder):
    return sorted(row["__key__"] for row in read_shards(folder))


def test_a_folder_that_grew_is_written_and_encoded_again(raw, folder, tmp_path, capsys):
    encode_shards(raw, tmp_path / "latents")
    cases.write(folder / "6.txt", "a red 6")
    cases.write(folder / "6.png", cases.data(cases.picture(6)))
    write_shards(folder, tmp_path / "raw")
    assert "its source has changed since" in capsys.readouterr().out
    encode_shards(raw, tmp_path / "latents")
    assert "its sources have changed since, and are encoded: 1: 00003.tar" in capsys.readouterr().out
    assert keys(tmp_path / "latents") == keys(raw) == [f"{i}_png" for i in range(7)]


def test_a_caption_that_was_corrected_is_written_and_encoded_again(raw, folder, tmp_path):
    encode_shards(raw, tmp_path / "latents")
    cases.write(folder / "2.txt", "a much longer caption")
    write_shards(folder, tmp_path / "raw")
    encode_shards(raw, tmp_path / "latents")
    assert [row["txt"] for row in read_shards(raw)][2] == b"a much longer caption"
    assert cases.sizes(tmp_path / "latents", "text")[2] == len("a much longer caption")


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_tar_that_was_replaced_by_one_of_its_name_is_encoded_again(tmp_path, keeps_time, capsys):
    source = tmp_path / "raw/0.tar"
    cases.tar(source, cases.pairs(2))
    encode_shards(tmp_path / "raw", tmp_path / "latents")
    time = source.stat().st_mtime_ns
    cases.tar(source, cases.pairs(4))
    if keeps_time:
        os.utime(source, ns=(time, time))
    encode_shards(tmp_path / "raw", tmp_path / "latents")
    assert len(keys(tmp_path / "latents")) == 4
    os.utime(source)  # touched, and the same
    capsys.readouterr()
    encode_shards(tmp_path / "raw", tmp_path / "latents")
    assert "is complete" in capsys.readouterr().out


def test_an_overwrite_that_failed_leaves_nothing_that_looks_complete(tmp_path):
    cases.tar(tmp_path / "raw/0.tar", cases.pairs(3))
    encode_shards(tmp_path / "raw", tmp_path / "latents")
    cases.tar(tmp_path / "raw/0.tar", cases.pairs(3)[:-1])
    with pytest.raises(ValueError, match=r"no member \.txt"):
        encode_shards(tmp_path / "raw", tmp_path / "latents", "--overwrite")
    with pytest.raises(ValueError, match="no shards in"):
        list_shards(tmp_path / "latents")
    with pytest.raises(ValueError, match=r"no member \.txt"):
        encode_shards(tmp_path / "raw", tmp_path / "latents")


def test_a_network_of_shards_that_changed_is_told(shards, tmp_path, capsys):
    for path in shards.iterdir():
        cases.write(tmp_path / "shards" / path.name, path.read_bytes())
    options = cases.autoencoder_options(tmp_path / "shards", tmp_path / "ae")
    fit_codec.run(options)
    fit_codec.run(options)
    assert "is complete; skipped" in capsys.readouterr().out
    tar = tmp_path / "shards/00000.tar"
    cases.write(tar, tar.read_bytes() + bytes(512))
    fit_codec.run(options)
    assert "made from OTHER data: its shards have changed since; skipped" in capsys.readouterr().out
