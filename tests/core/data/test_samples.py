"""Data modules: any sample at random, missing modalities, and one order whatever reads it."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save

from unidiff_core import Codec, Modality, Stream, UniDiffuser
from unidiff_core.data.cleaner import Cleaner
from unidiff_core.data.damage import Tally
from unidiff_core.data.encoding import RawReader, SampleEncoder
from unidiff_core.data.index import INDEX, open_index
from unidiff_core.data.module import OrderedData
from unidiff_core.data.order import Place
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.samples import (
    RawDataset,
    RawSamples,
    RecordsInMemory,
    SourceSamples,
    StoredDataset,
    StoredSamples,
    _warn_of_other_codecs,
)
from unidiff_core.data.shard import STORED, write_manifest, write_shard, write_shards
from unidiff_core.data.source import Source
from unidiff_core.data.tensors import TensorsInMemory, TensorsOnDisk
from unidiff_core.foundation.registry import Registry
from unidiff_core.network.uvit import UViT


class NumberCodec(Codec):
    """Numbers as vectors, and their signs."""

    extension = "num"

    @property
    def streams(self):
        return {"v": Stream.vector(3), "s": Stream.sequence(2, 2)}

    def encode(self, raws):
        x = torch.tensor(raws, dtype=torch.float32)[:, None]
        return {"v": x * torch.tensor([1.0, 2.0, 3.0]) / 40, "s": (x[:, None].sign()).repeat(1, 2, 2)}

    def decode(self, latents):
        return latents["v"][:, 0].tolist()

    def from_bytes(self, data):
        return float(data)

    def to_bytes(self, raw):
        return str(raw).encode()


class ScaledCodec(NumberCodec):
    weights = ("table",)

    def __init__(self, scale=1.0, table="runs/table"):
        super().__init__()
        self.scale, self.table = scale, table


class OddCleaner(Cleaner):
    def clean(self, raw):
        return None if raw % 2 else raw


CODECS = {"a": NumberCodec(), "b": NumberCodec()}
MEMBERS = {"b": "b"}


def raw(i, **members):
    row = {"__key__": f"{i:04d}", "num": str(i).encode(), "b": str(-i).encode(), "json": b"{}"}
    return {key: value for key, value in (row | members).items() if value is not None}


def rows(gaps=False):
    """40 raw samples; with gaps, a third lacks one modality or the other."""
    return [
        raw(i, **({"b": None} if i % 5 == 2 else {"num": None} if i % 7 == 3 else {}) if gaps else {})
        for i in range(40)
    ]


def stored_shards(folder, samples, **options):
    encoder = SampleEncoder(RawReader(CODECS, MEMBERS), 8, **options)
    write_shards(folder, encoder.samples(samples, "rows", Tally()), shard_size=7)
    return str(folder)


def place(*numbers):
    return Place(torch.tensor(numbers), torch.arange(len(numbers)), 0)


def attached(data, first=0, rank=0, world=1):
    """A data module in the hands of a trainer, at a step, of a model with these codecs."""
    data.trainer = SimpleNamespace(
        global_step=first,
        global_rank=rank,
        world_size=world,
        is_global_zero=True,  # each decides for itself here
        lightning_module=SimpleNamespace(modalities={name: Modality(codec) for name, codec in CODECS.items()}),
        strategy=SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda told: told),
    )
    return data


def same(one, two):
    assert one.stored.keys() == two.stored.keys() and one.present.keys() == two.present.keys()
    assert all(torch.equal(one.stored[key], two.stored[key]) for key in one.stored)
    assert all(torch.equal(one.present[key], two.present[key]) for key in one.present)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_memory_map_gives_what_memory_gives(tmp_path, dtype):
    folder = stored_shards(tmp_path, rows(gaps=True), missing="keep", dtype=dtype)
    mapped, held = StoredDataset.at(folder, in_memory=False), StoredDataset.at(folder)
    assert isinstance(mapped.tensors, TensorsOnDisk) and isinstance(held.tensors, TensorsInMemory)
    assert len(mapped) == len(held) == 40
    for at in (place(*range(40)), place(39, 0, 17, 2, 2), place(0, 1), place(2, 12)):
        same(mapped[at], held[at])
    batch = mapped[place(0, 2, 3, 39)]
    assert batch.stored["a.v"].dtype == torch.float32
    assert torch.allclose(batch.stored["a.v"][:, 2] * 40 / 3, torch.tensor([0.0, 2.0, 0.0, 39.0]), rtol=1e-3)
    assert {name: mask.tolist() for name, mask in batch.present.items()} == {
        "a": [True, True, False, True],
        "b": [True, False, True, True],
    }
    assert mapped[place(2, 12)].stored["b.s"].shape == (2, 2, 2), "zeros where a whole batch lacks a modality"


def test_the_index_is_kept_and_made_anew_when_a_shard_changes(tmp_path, monkeypatch):
    folder = stored_shards(tmp_path, rows())
    first = StoredDataset.at(folder, in_memory=False)[place(3)]
    kept = (tmp_path / INDEX).stat().st_mtime_ns
    monkeypatch.setattr("unidiff_core.data.index.build_index", lambda paths: pytest.fail("built again"))
    same(StoredDataset.at(folder, in_memory=False)[place(3)], first)
    assert (tmp_path / INDEX).stat().st_mtime_ns == kept
    monkeypatch.undo()
    stored_shards(tmp_path, rows()[1:])
    assert StoredDataset.at(folder, in_memory=False)[place(3)].stored["a.v"][0, 0] * 40 == 4
    (tmp_path / INDEX).write_bytes(b"damaged")
    assert len(open_index(folder)) == 39


def flip(path, row):
    """Flip one bit in a sample's stored tensor, and leave the file's time as it was."""
    index = open_index(str(path))
    content, times = bytearray(path.read_bytes()), path.stat()
    content[int(index.starts[STORED][row] + index.lengths[STORED][row]) - 1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_flipped_bit_is_found_and_named(tmp_path, in_memory):
    folder = stored_shards(tmp_path, rows())
    StoredDataset.at(folder, in_memory)[place(*range(40))]
    flip(tmp_path / "00001.tar", 2)
    says = (
        r"sample 0009 of .*00001\.tar is damaged: the checksum of its \.safetensors is [0-9a-f]{8}, not [0-9a-f]{8}; br"
    )
    with pytest.raises(ValueError, match=says):
        StoredDataset.at(folder, in_memory)[place(0, 9)]
    StoredDataset.at(folder, in_memory, check=False)[place(0, 9)]
    if not in_memory:
        StoredDataset.at(folder, in_memory)[place(0, 8, 10)]
    (tmp_path / INDEX).unlink()
    with pytest.raises(ValueError, match=r"the shard .*00001\.tar is damaged: its SHA-256 is .*, not .* as .*manifest"):
        StoredSamples(in_memory).open(folder, {}, torch.device("cpu"))
    assert not (tmp_path / INDEX).exists()
    StoredSamples(in_memory, check=False).open(folder, {}, torch.device("cpu"))[place(9)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_uneven_shards_show_every_sample_once(tmp_path, workers):
    sizes, first, written = (0, 1, 7, 13, 100), 0, []
    encoder = SampleEncoder(RawReader(CODECS, MEMBERS), 8)
    for i, size in enumerate(sizes):
        part = encoder.samples([raw(first + j) for j in range(size)], "rows", Tally())
        written.append(write_shard(tmp_path / f"{i:05d}.tar", part))
        first += size
    write_manifest(tmp_path, written)
    parts = [OrderedData(str(tmp_path), str(tmp_path), StoredSamples(False), 11, num_workers=workers) for _ in range(2)]
    seen = {rank: list(attached(data, world=2, rank=rank).val_dataloader()) for rank, data in enumerate(parts)}
    assert len(seen[0]) == len(seen[1])
    shown = [batch.rows for rank in seen for batch in seen[rank] if not batch.present or batch.present["a"].any()]
    assert sorted(torch.cat(shown).tolist()) == list(range(121))
    train = torch.cat([batch.rows for batch in attached(parts[0]).train_dataloader()])
    assert sorted(train.tolist()) == list(range(121))


def test_a_pattern_of_shards_leaves_no_index(tmp_path):
    stored_shards(tmp_path, rows())
    assert len(open_index(f"{tmp_path}/0000{{0,1}}.tar")) == 14 and not (tmp_path / INDEX).exists()


def test_many_shards_keep_no_file_open_and_the_index_travels_without_its_maps(tmp_path):
    tensors = TensorsOnDisk(open_index(stored_shards(tmp_path, rows())))
    before = len(list(Path("/proc/self/fd").iterdir()))
    tensors.take(torch.arange(40))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(tensors.index._maps) == 6
    again = pickle.loads(pickle.dumps(tensors))
    assert not again.index._maps and torch.equal(
        again.take(torch.tensor([5]))[0]["a.v"], tensors.take(torch.tensor([5]))[0]["a.v"]
    )


def tensors_of(**values):
    return save({key.replace("_", "."): value for key, value in values.items()})


TWO = {"a_v": torch.zeros(3), "a_s": torch.zeros(2)}
ODD = [
    (tensors_of(a_v=torch.zeros(3)), r"sample 0001 of .* has no a\.s, but others of 'a'"),
    (tensors_of(a_v=torch.zeros(4), a_s=torch.zeros(2)), r"sample 0001 .*a\.v as torch\.float32 \[4\], others as"),
    (tensors_of(a_v=torch.zeros(3).half(), a_s=torch.zeros(2)), r"a\.v as torch\.float16"),
    (b"\x05" + bytes(7) + b"{...}", r"sample 0001 .*is damaged"),
    (b"\xff" * 40, r"sample 0001 .*is damaged"),
    (b"\x02" + bytes(7) + b"\xff\xff", r"sample 0001 .*is damaged"),
    (tensors_of(**TWO)[:-4], r"sample 000. .*is damaged"),
    (None, "sample 0001 of .* stores no latents"),
]


@pytest.mark.parametrize(("content", "says"), ODD)
def test_a_sample_that_differs_is_named(tmp_path, content, says):
    members = [
        {STORED: tensors_of(**TWO)},
        {STORED: content} if content else {"txt": b"x"},
        {STORED: tensors_of(**TWO)},
    ]
    write_shards(tmp_path, [{"__key__": f"{i:04d}"} | row for i, row in enumerate(members)])
    with pytest.raises(ValueError, match=says):
        StoredDataset.at(str(tmp_path))


def test_shards_that_cannot_be_read_at_random_are_refused(tmp_path):
    write_shards(tmp_path, rows())
    with pytest.raises(ValueError, match="no stored latents"):
        StoredDataset.at(str(tmp_path))
    content = (tmp_path / "00000.tar").read_bytes()
    for name in ("a.tar.gz", "b.tar"):  # whatever it is called
        (tmp_path / name).write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match="compressed"):
            open_index(f"{tmp_path}/{name}")
    (tmp_path / "cut.tar").write_bytes(content[:5000])
    with pytest.raises(ValueError, match=r"cut\.tar is damaged"):
        open_index(f"{tmp_path}/cut.tar")
    with tarfile.open(tmp_path / "two.tar", "w") as archive:
        for name in ("a.txt", "a.TXT"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match=r"two members \.txt"):
        open_index(f"{tmp_path}/two.tar")


def test_a_resumed_run_reads_on_where_it_was_whatever_reads(tmp_path):
    folder = stored_shards(tmp_path, rows())

    def batches(first, in_memory=None, num_workers=0):
        samples = StoredSamples(in_memory)
        data = OrderedData(folder, None, samples, batch_size=12, micro_batch_size=6, seed=3, num_workers=num_workers)
        loader, found = attached(data, first).train_dataloader(), []
        for _ in range(2):  # epochs, each of which begins at the trainer's step
            found += list(loader)
            data.trainer.global_step += 4
        return [(batch.step, batch.index.tolist(), batch.stored["a.v"][:, 0].tolist()) for batch in found]

    whole = batches(0)
    assert batches(0, in_memory=False) == batches(0, in_memory=False, num_workers=2) == whole
    assert batches(3, in_memory=False, num_workers=1)[:10] == whole[6:]
    numbers = [round(x * 40) for _, _, part in whole for x in part]
    assert sorted(numbers[:40]) == list(range(40)) == sorted(numbers[40:80]), "each epoch is a permutation"


def test_validation_is_in_order_and_each_sample_once(tmp_path):
    folder = stored_shards(tmp_path, rows())
    assert OrderedData(folder).val_dataloader() == []
    (batch,) = OrderedData(folder, folder).val_dataloader()
    assert batch.stored["a.v"][:, 0].mul(40).round().tolist() == list(range(40))


# --- raw samples ---


def test_raw_samples_stand_in_for_what_is_missing(tmp_path):
    write_shards(tmp_path, [*rows(gaps=True), raw(40, num=None, b=None)], shard_size=7)
    samples = RawDataset(open_index(str(tmp_path)), RawReader(CODECS, MEMBERS))
    assert len(samples) == 40, "a sample without any modality is left out"
    batch = samples[place(1, 2, 3)]
    assert batch.raws == {"a": [1.0, 2.0, 0.0], "b": [-1.0, 0.0, -3.0]}
    assert {name: mask.tolist() for name, mask in batch.present.items()} == {
        "a": [True, True, False],
        "b": [True, False, True],
    }
    cleaned = RawDataset(open_index(str(tmp_path)), RawReader(CODECS, MEMBERS, {"a": OddCleaner()}))
    assert cleaned[place(0, 1)].present["a"].tolist() == [True, False]


def test_an_unreadable_raw_sample_is_named(tmp_path):
    write_shards(tmp_path, [raw(0), raw(1, b=b"minus one")])
    samples = RawDataset(open_index(str(tmp_path)), RawReader(CODECS, MEMBERS))
    with pytest.raises(ValueError, match=r"sample 0001 of .*00000\.tar, member \.b: could not convert"):
        samples[place(0, 1)]
    with pytest.raises(ValueError, match=r"no sample has a member \.wav for 'b'"):
        RawDataset(open_index(str(tmp_path)), RawReader(CODECS, {"b": "wav"}))
    odd = RawDataset(RecordsInMemory([raw(1), raw(3)]), RawReader(CODECS, MEMBERS, {"a": OddCleaner()}))
    with pytest.raises(ValueError, match="cleaning leaves nothing of any sample of 'a'"):
        odd[place(0)]


# --- one run, whatever the samples come from ---


class RowsSource(Source):
    """The rows above."""

    def __init__(self, gaps: bool = False) -> None:
        self.gaps = gaps

    @property
    def splits(self):
        return {"train": 40, "validation": 40}

    def samples(self, split):
        yield from rows(self.gaps)


class Losses(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(float(outputs["loss"]))


def losses(data, tmp_path, steps=2):
    torch.manual_seed(0)
    model = UniDiffuser({name: Modality(NumberCodec()) for name in CODECS}, partial(UViT, width=16, depth=3, heads=2))
    seen = Losses()
    trainer = pl.Trainer(
        **{"max_steps": steps, "max_epochs": -1, "accelerator": "cpu", "logger": False, "callbacks": [seen]},
        **{"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False},
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    assert trainer.validate(model, datamodule=data, verbose=False)
    return seen.seen


@pytest.mark.parametrize("gaps", [False, True])
def test_stored_raw_and_source_are_the_same_run(tmp_path, gaps, capsys):
    write_shards(tmp_path / "raw", rows(gaps), shard_size=9)
    folder = stored_shards(tmp_path / "stored", list(read_shards(tmp_path / "raw")), missing="keep")
    raws, options = str(tmp_path / "raw"), {"batch_size": 16, "seed": 5}
    missing = {"missing": "keep" if gaps else "error", "members": MEMBERS}
    expected = losses(OrderedData(folder, folder, **options), tmp_path)
    for where, samples, workers in (
        (folder, StoredSamples(in_memory=False), 0),
        (raws, RawSamples(MEMBERS), 0),
        (raws, RawSamples(MEMBERS), 1),
        (None, SourceSamples(RowsSource(gaps), **missing), 0),
        (None, SourceSamples(RowsSource(gaps), cache=False, **missing), 0),
    ):
        data = OrderedData(where or "train", where or "validation", samples, num_workers=workers, **options)
        assert losses(data, tmp_path) == pytest.approx(expected, rel=1e-6), samples


def test_shards_that_are_not_there_are_told_with_the_option_that_named_them(tmp_path):
    folder = stored_shards(tmp_path / "stored", rows())
    with pytest.raises(ValueError, match=r"data\.validation: no shards in .*`unidiffuser encode` latents"):
        losses(OrderedData(folder, str(tmp_path / "nowhere"), batch_size=16), tmp_path)


def test_latents_that_another_codec_stored_are_told(tmp_path, recwarn):
    registry = Registry()
    registry.add(ScaledCodec)
    write_shards(tmp_path, rows())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    then = {"a": {"class": "ScaledCodec", "scale": 2.0, "table": "runs/table"}, "c": {"class": "Gone"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"codecs": then}))
    with mock.patch("unidiff_core.serialization.description.load_plugins", lambda: registry):
        _warn_of_other_codecs(str(tmp_path), {"a": ScaledCodec(2.0), "b": NumberCodec()})
        _warn_of_other_codecs(str(tmp_path), {"a": ScaledCodec(2.0, "runs/model/../table")})  # a model directory's
        assert not recwarn.list
        _warn_of_other_codecs([str(tmp_path)], {"a": ScaledCodec(3.0)})
    assert "by another a codec: scale was 2.0 and is 3.0. Unless" in str(recwarn.pop(UserWarning).message)


def test_a_modality_that_no_sample_stores_is_named(tmp_path):
    folder = stored_shards(tmp_path, [raw(i, b=None) for i in range(40)], missing="keep")
    with pytest.raises(ValueError, match="has latents of b, only of a"):
        losses(OrderedData(folder), tmp_path)


def test_source_samples_say_what_they_lack(tmp_path):
    for train, options, says in (
        ("train", {"members": MEMBERS}, r"data\.train: sample 0002 of split train: it has no member \.b"),
        ("train", {"members": MEMBERS, "cache": False}, r"data\.train: sample 0003 has no member \.num"),
        ("test", {"members": MEMBERS}, "no split 'test'; there are train, validation"),
        ("train", {"members": {"c": "x"}}, "no modality c; there are a, b"),
    ):
        samples = SourceSamples(RowsSource(gaps=True), **options)
        with pytest.raises(ValueError, match=says):
            losses(OrderedData(train, None, samples, batch_size=8), tmp_path)


def test_a_source_without_validation_has_none():
    class TrainOnly(RowsSource):
        splits = {"train": 40}  # noqa: RUF012

    samples = SourceSamples(TrainOnly(), MEMBERS)
    for validation in ("validation", None):
        assert attached(OrderedData("train", validation, samples)).val_dataloader() == []
    with pytest.raises(ValueError, match=r"data\.train: there is no 'validation' to train on"):
        attached(OrderedData("validation", None, samples)).train_dataloader()
    with pytest.raises(ValueError, match=r"data\.validation: the source has no split 'dev'; there are train"):
        attached(OrderedData("train", "dev", samples)).val_dataloader()


def test_raw_samples_need_a_model_whose_codecs_encode_them(tmp_path):
    write_shards(tmp_path / "raw", rows())
    for where, samples in ((str(tmp_path / "raw"), RawSamples()), ("train", SourceSamples(RowsSource()))):
        with pytest.raises(ValueError, match=r"data\.train: .*give the data module to a trainer"):
            OrderedData(where, None, samples).train_dataloader()
