"""Damage: each policy, each kind, and the exact count of what was lost; the same wherever shards are read."""

from __future__ import annotations

import io
import json
import re
import tarfile
import warnings

import pytest
import pytorch_lightning as pl
import torch

from tests.core.data.test_encoding import NumberCodec, sample
from unidiff_core import Modality
from unidiff_core.data.columns import ShardData
from unidiff_core.data.damage import Damage, LossError, Tally
from unidiff_core.data.encoding import RawReader, SampleEncoder
from unidiff_core.data.index import open_index
from unidiff_core.data.job import EncodingJob
from unidiff_core.data.location import Shard, list_shards
from unidiff_core.data.module import OrderedData
from unidiff_core.data.salvage import Salvage
from unidiff_core.data.samples import RawSamples
from unidiff_core.data.shard import MANIFEST, STORED, read_samples, write_shards

MUCH = 0.7


@pytest.fixture
def raw(tmp_path):
    """3 shards of 5 samples, and their manifest."""
    write_shards(tmp_path / "raw", [sample(i) for i in range(15)], shard_size=5)
    return tmp_path / "raw"


def spoil(raw, change, shard=1):
    """Change a shard's members, and let the manifest promise what is there now."""
    path = raw / f"0000{shard}.tar"
    with path.open("rb") as stream:
        rows = list(read_samples(stream, "raw"))
    members = change([(f"{row['__key__']}.{end}", data) for row in rows for end, data in row.items() if end[0] != "_"])
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    manifest = json.loads((raw / MANIFEST).read_text())
    manifest["shards"][shard].pop("sha256")
    manifest["shards"][shard]["sha256"] = None
    (raw / MANIFEST).write_text(json.dumps(manifest))


def unreadable(members):
    return [(name, b"seven" if name == "0007.num" else data) for name, data in members]


def doubled(members):
    return [*members, *[row for row in members if row[0].startswith("0005")]]


def two_of_one(members):
    return [row for name, data in members for row in [(name, data)] * (1 + (name == "0006.num"))]


def unsorted(members):
    return [row for row in members if row[0].endswith("num")] + [row for row in members if not row[0].endswith("num")]


def cut(raw):
    path = raw / "00001.tar"
    with tarfile.open(path) as archive:
        place = archive.getmember("0007.num").offset_data
    path.write_bytes(path.read_bytes()[:place])


def flip_a_header(raw):
    path = raw / "00001.tar"
    with tarfile.open(path) as archive:
        place = archive.getmember("0008.b").offset
    content = bytearray(path.read_bytes())
    content[place + 2] ^= 4
    path.write_bytes(content)


def flip_the_payload(raw):
    path = raw / "00001.tar"
    with tarfile.open(path) as archive:
        place = archive.getmember("0008.num").offset_data
    content = bytearray(path.read_bytes())
    content[place] ^= 1  # 8 → 9
    path.write_bytes(content)


KINDS = {
    "unreadable": (lambda raw: spoil(raw, unreadable), 1),
    "key twice": (lambda raw: spoil(raw, doubled), 1),
    "member twice": (lambda raw: spoil(raw, two_of_one), 1),
    "unsorted": (lambda raw: spoil(raw, unsorted), 5),
    "cut off": (cut, 5),
    "header": (flip_a_header, 5),
    "payload": (flip_the_payload, 5),
    "absent": (lambda raw: (raw / "00001.tar").unlink(), 5),
    "empty": (lambda raw: (raw / "00001.tar").write_bytes(b""), 5),
}
"""Kind → what does it to the second of three shards, and how many samples are lost where a sample may be."""


class Numbers(ShardData):
    """All numbers of shards."""

    def read(self):
        return {"x": list(self.parsed(("num", float), ("b", float)))}


def encoded(raw, folder, damage):
    encoder = SampleEncoder(RawReader({"a": NumberCodec(), "b": NumberCodec()}, {"b": "b"}), 4, damage=damage)
    shards = list_shards(raw, allow_absent=damage.policy != "fail")
    tally = EncodingJob(encoder, shards, folder).run()
    found = [row for shard in list_shards(folder) for row in Salvage(shard, Damage(), Tally())]
    assert all(STORED in row for row in found) and len(found) == tally.kept
    return tally.kept, tally.lost


def read_as_columns(raw, folder, damage):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kept = len(Numbers(str(raw), damage=damage).read()["x"])
    (lost,) = [match[1] for row in said if (match := re.search(r"(\d+) lost", str(row.message)))]
    return kept, int(lost)


def trained(raw, folder, damage):
    """Every sample is asked for once, through the data module."""
    data = OrderedData(str(raw), samples=RawSamples({"b": "b"}, damage=damage), batch_size=4)
    model = pl.LightningModule()
    model.modalities = {"a": Modality(NumberCodec()), "b": Modality(NumberCodec())}
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.strategy._lightning_module = model
    batches = [data.on_before_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    rows = {int(row) for batch in batches for row, has in zip(batch.rows, batch.present["a"], strict=True) if has}
    return len(rows), data._samples.tally.lost


DOORS = {"encode": encoded, "fit-codec": read_as_columns, "fit": trained}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_is_counted_exactly(raw, tmp_path, kind, door):
    spoiled, num = KINDS[kind]
    spoiled(raw)
    with pytest.raises((ValueError, OSError)):
        DOORS[door](raw, tmp_path / "fail", Damage())
    total = 16 if kind == "key twice" else 15
    if kind == "key twice":  # 16 in the shards; the manifest counts what it counts
        (raw / MANIFEST).unlink()
    kept, lost = DOORS[door](raw, tmp_path / "sample", Damage("skip_sample", MUCH))
    assert kept == total - num and lost == num
    if door == "fit" and kind == "unreadable":
        return  # found when its turn comes: it goes alone
    kept, lost = DOORS[door](raw, tmp_path / "shard", Damage("skip_shard", MUCH))
    assert kept == 10 and lost == total - 10


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("door", DOORS)
def test_beyond_the_budget_all_stops(raw, tmp_path, door):
    cut(raw)
    with pytest.raises(LossError, match=r"5 of 15 samples could not be read, more than damage.max_lost=0.001"):
        DOORS[door](raw, tmp_path / "out", Damage("skip_sample"))


@pytest.mark.parametrize("door", DOORS)
def test_without_a_manifest_what_lies_before_the_damage_is_kept(raw, tmp_path, door):
    flip_a_header(raw)
    (raw / MANIFEST).unlink()
    assert DOORS[door](raw, tmp_path / "out", Damage("skip_sample", MUCH)) == (12, 3)


@pytest.mark.parametrize("where", ["a folder", "several"])
def test_raw_shards_are_compared_with_their_manifests(raw, where):
    flip_the_payload(raw)
    with pytest.raises(ValueError, match=r"00001\.tar is damaged: its SHA-256"):
        open_index(str(raw) if where == "a folder" else [str(raw), str(raw)], check=True)


def test_without_a_manifest_the_headers_are_counted(raw):
    flip_a_header(raw)
    tally = Tally()
    kept = list(Salvage(Shard(str(raw / "00001.tar")), Damage("skip_sample"), tally))
    assert [row["__key__"] for row in kept] == ["0005", "0006"]
    assert (tally.lost, tally.shards, tally.uncounted) == (3, 1, 1) and "at least 3 lost" in str(tally)


def test_what_can_be_counted_nowhere_is_an_error_under_every_policy(raw):
    for policy in ("skip_sample", "skip_shard"):
        with pytest.raises(ValueError, match=r"How many samples are lost with it is not known, for no manifest"):
            Salvage(Shard(str(raw / "x.tar")), Damage(policy), Tally()).lose_rest("it is not there")


def test_a_source_that_stalls_or_fails_is_lost_in_time(raw):
    start = f"head -c 4000 {raw}/00001.tar"
    for command, says in ((f"{start}; sleep 60", "no byte came within 0.3 s"), (f"{start}; exit 3", "damaged")):
        tally = Tally()
        damage = Damage("skip_sample", patience=0.3)
        shard = Shard(f"pipe:{command}", count=5)
        kept = list(Salvage(shard, damage, tally, allow_pipe=True))
        assert len(kept) + tally.lost == 5 and says in tally.errors[0]
        with pytest.raises((TimeoutError, ValueError), match=says):
            list(Salvage(shard, Damage(patience=0.3), Tally(), allow_pipe=True))


class Faint(NumberCodec):
    """Gives what half precision cannot hold of 7, NaN of 9, and nothing of 11."""

    def encode(self, raws):
        if 11.0 in raws:
            raise TypeError("eleven")
        return {
            "v": super().encode(raws)["v"] * torch.tensor([{7: 1e9, 9: float("nan")}.get(x, 1) for x in raws])[:, None]
        }


def test_what_cannot_be_stored_is_named_or_lost():
    rows = [sample(i) for i in range(14)]

    def run(rows, dtype, damage):
        tally = Tally()
        encoder = SampleEncoder(RawReader({"a": Faint()}), 4, dtype, damage=damage)
        return [row["__key__"] for row in encoder.samples(rows, "s.tar", tally)], tally

    says = r"sample 0007 of s\.tar: what Faint .* gives as a\.v is not finite in float16, which ends at .*float32"
    with pytest.raises(ValueError, match=says):
        run(rows, torch.float16, Damage())
    with pytest.raises(ValueError, match=r"sample 0009 .* is not finite: NaN, or beyond"):
        run(rows, torch.float32, Damage())
    with pytest.raises(ValueError, match=r"sample 0011 .*cannot encode it: TypeError: eleven"):
        run(rows[10:], torch.float32, Damage())
    kept, tally = run(rows, torch.float16, Damage("skip_sample"))
    assert len(kept) == 11 and tally.lost == 3 and tally.kept == 11 and tally.read == 14


def test_a_member_that_fills_the_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("unidiff_core.data.shard.MAX_MEMBER", 100)
    write_shards(tmp_path, [sample(1), sample(2, num=b"1" * 101), sample(3)])
    tally = Tally()
    (shard,) = list_shards(tmp_path)
    assert len(list(Salvage(shard, Damage("skip_sample"), tally))) == 2
    assert "member .num: 101 bytes, and 100 are read at most" in tally.errors[0]


def test_a_manifest_lists_nothing_outside_of_its_folder(raw):
    (raw / MANIFEST).write_text(json.dumps({"shards": [{"name": "../x.tar", "sha256": None, "count": 1}]}))
    with pytest.raises(ValueError, match="lists shards of its own folder"):
        list_shards(raw, allow_absent=True)
