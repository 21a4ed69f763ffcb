"""Shards: whole or absent when written, read to the end or not at all, wherever they are."""

from __future__ import annotations

import io
import os
import tarfile

import fsspec
import pytest

from unidiff_core.data import shard
from unidiff_core.data.index import open_index
from unidiff_core.data.location import Shard, list_shards, local_path, open_shard
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.shard import read_samples, write_shard, write_shards
from unidiff_core.foundation.atomic import replacing


def samples(count=6, first=0):
    return [{"__key__": f"{i:04d}", "num": str(i).encode(), "txt": b"x" * 700} for i in range(first, first + count)]


@pytest.fixture
def tar(tmp_path):
    write_shard(tmp_path / "a.tar", samples())
    return tmp_path / "a.tar"


def test_the_same_samples_give_the_same_bytes_and_come_back(tmp_path, tar):
    written = write_shard(tmp_path / "b.tar", iter(samples()))
    assert (tmp_path / "b.tar").read_bytes() == tar.read_bytes()
    assert written.count == 6 and written.sha256 == shard.hashlib.sha256(tar.read_bytes()).hexdigest()
    assert list(read_shards(tar)) == samples()


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tar):
    before = tar.read_bytes()

    def failing():
        yield samples()[0]
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_shard(tar, failing())
    assert tar.read_bytes() == before and list(tar.parent.iterdir()) == [tar]


def test_a_partial_file_is_named_after_its_process(tar):
    with replacing(tar) as stream:
        stream.write(b"new")
        assert [path.name for path in tar.parent.glob("*.partial")] == [
            f"a.tar.{os.uname().nodename}.{os.getpid()}.partial"
        ]
    assert tar.read_bytes() == b"new"


def header_of(tar, number):
    """Where the header of a member is."""
    with tarfile.open(tar) as archive:
        return archive.getmembers()[number].offset


def damage(tar, kind):
    content = bytearray(tar.read_bytes())
    place = header_of(tar, 5)
    if kind == "header":
        content[place + 3] ^= 0xFF
    elif kind == "zeroed header":
        content[place : place + 512] = bytes(512)
    elif kind == "cut in a header":
        content = content[: place + 100]
    elif kind == "cut between members":
        content = content[:place]
    elif kind == "cut in a member":
        content = content[: place + 700]
    elif kind == "empty":
        content = content[:0]
    elif kind == "no tar":
        content[:] = os.urandom(len(content))
    tar.write_bytes(content)


KINDS = ["header", "zeroed header", "cut in a header", "cut between members", "cut in a member", "empty", "no tar"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_shard_is_an_error_that_names_it(tar, kind):
    damage(tar, kind)
    with pytest.raises(ValueError, match=r"a\.tar is damaged"):
        list(read_shards(tar))


def test_two_members_of_one_ending_are_an_error(tmp_path):
    with tarfile.open(tmp_path / "two.tar", "w") as archive:
        for name in ("a.txt", "a.TXT"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match=r"sample a of .*two\.tar has two members \.txt"):
        list(read_shards(tmp_path / "two.tar"))


def test_gzipped_shards_are_read_and_their_end_is_checked(tmp_path, tar):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(shard.zlib.compress(tar.read_bytes(), wbits=31))
    assert list(read_shards(path)) == samples()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is damaged"):
        list(read_shards(path))


def names(shards):
    return [row.name for row in shards]


def test_folders_patterns_and_lists_of_tars(tmp_path):
    for i in range(3):
        write_shard(tmp_path / f"raw/{i:05d}.tar", samples(first=i))
    (tmp_path / "raw/00000_stats.json").write_text("{}")  # img2dataset's
    expected = ["00000.tar", "00001.tar", "00002.tar"]
    raw = tmp_path / "raw"
    assert names(list_shards(raw)) == expected
    assert names(list_shards(f"{raw}/*.tar")) == expected
    assert names(list_shards(f"{raw}/{{00000..00002}}.tar")) == expected
    assert names(list_shards([f"{raw}/00002.tar", f"{raw}/0000{{0,1}}.tar"])) == [expected[2], *expected[:2]]
    with pytest.raises(ValueError, match=r"no such shard: .*00003\.tar"):
        list_shards(f"{raw}/{{00000..00003}}.tar")
    with pytest.raises(ValueError, match="no shards match"):
        list_shards(f"{raw}/x*.tar")


def test_the_manifest_decides_and_a_half_written_folder_is_refused(tmp_path):
    write_shards(tmp_path, samples(), shard_size=3)
    write_shard(tmp_path / "stray.tar", samples())
    assert names(list_shards(tmp_path)) == ["00000.tar", "00001.tar"]
    assert all(len(row.sha256) == 64 for row in list_shards(tmp_path))
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "source.json").touch()
    with pytest.raises(ValueError, match="did not finish there"):
        list_shards(tmp_path)
    with pytest.raises(ValueError, match=r"no shards in .*nowhere"):
        list_shards(tmp_path / "nowhere")


def read(url, **options):
    with open_shard(url, **options) as stream:
        return list(read_samples(stream, url))


@pytest.fixture
def remote(tmp_path):
    """A folder of an object store, in memory."""
    write_shards(tmp_path / "local", samples(), shard_size=3)
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(tmp_path / "local"), "/bucket", recursive=True)
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


def test_object_storage(remote, tmp_path):
    shards = list_shards("memory://bucket")
    assert names(shards) == ["00000.tar", "00001.tar"] and shards[0].sha256
    assert [row for shard in shards for row in read(shard.url)] == samples()
    remote.rm("/bucket/manifest.json")
    for where in ("memory://bucket/", "memory://bucket/*.tar", "memory://bucket/0000{0,1}.tar"):
        assert [row for shard in list_shards(where) for row in read(shard.url)] == samples()
    assert read(f"file://{tmp_path}/local/00000.tar") == samples(3)
    with pytest.raises(OSError, match=r"00009\.tar"):
        read("memory://bucket/00009.tar")


def test_a_local_copy_serves_reading_at_random(remote, tmp_path):
    (cached,) = list_shards("simplecache::memory://bucket/*1.tar")
    assert local_path(cached).read_bytes() == (tmp_path / "local/00001.tar").read_bytes()
    assert local_path(Shard(f"file://{tmp_path}/a.tar")) == tmp_path / "a.tar"
    with pytest.raises(ValueError, match=r"simplecache::memory://bucket/00000\.tar"):
        local_path(Shard("memory://bucket/00000.tar"))


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="nonsense"):
        list_shards("nonsense://bucket/*.tar")


def test_a_signature_is_not_shown():
    shard = Shard("https://host/data/00001.tar?signature=secret")
    assert (shard.name, str(shard)) == ("00001.tar", "https://host/data/00001.tar")


def test_a_pipe_runs_only_where_it_is_allowed(tar, tmp_path):
    url = f"pipe:touch {tmp_path}/ran; cat {tar}"
    for call in (list_shards, read):
        with pytest.raises(ValueError, match="--allow_pipe"):
            call(url)
    assert not (tmp_path / "ran").exists()
    (shard,) = list_shards(url, allow_pipe=True)
    assert read(shard.url, allow_pipe=True) == samples() and (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="exit code 3"):
        read(f"pipe:cat {tar}; exit 3", allow_pipe=True)


def test_webdataset_itself_stays_secure(monkeypatch):
    monkeypatch.delenv("WDS_SECURE", raising=False)
    shard.secure_webdataset()
    assert os.environ["WDS_SECURE"] == "1"


def test_a_local_copy_is_indexed_and_trained_on(remote):
    index = open_index("simplecache::memory://bucket/*.tar")
    assert len(index) == 6 and index.member(4, "txt") == samples()[4]["txt"]
