"""Several of one modality in a sample, as an image has captions: all are stored, one is drawn at each use."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from tests.core.data.test_samples import CODECS, MEMBERS, OddCleaner, RowsSource, attached, losses, raw, same
from unidiff_core.data.columns import Alternatives, Batches, Rows, ShardData, Shuffled
from unidiff_core.data.damage import Damage, Tally
from unidiff_core.data.encoding import RawReader, SampleEncoder
from unidiff_core.data.index import open_index
from unidiff_core.data.job import EncodingJob
from unidiff_core.data.location import list_shards
from unidiff_core.data.module import OrderedData
from unidiff_core.data.order import GlobalOrder, InOrder, Place
from unidiff_core.data.salvage import read_having, read_shards
from unidiff_core.data.samples import (
    RawDataset,
    RawSamples,
    RecordsInMemory,
    SourceSamples,
    StoredDataset,
    StoredSamples,
)
from unidiff_core.data.shard import MOST, STORED, alternatives_of, ending_of, numbered, write_shards
from unidiff_core.data.tensors import TensorsInMemory, TensorsOnDisk, stack
from unidiff_core.evaluation.metric import load_samples


def rows():
    """40 samples, the i-th with i % 4 + 1 of `a` (i, i + 100, …), every fifth without `b`, one without `a`."""
    found = []
    for i in range(40):
        several = numbered("num", [str(i + 100 * j).encode() for j in range(i % 4 + 1)])
        found.append(raw(i, **several, **({"b": None} if i % 5 == 2 else {})))
    del found[8]["num"]
    return found


def encoded(folder, samples, **options):
    write_shards(folder / "raw", samples, shard_size=7)
    encoder = SampleEncoder(RawReader(CODECS, MEMBERS, options.pop("clean", None)), 8, missing="keep", **options)
    job = EncodingJob(encoder, list_shards(folder / "raw"), folder / "stored")
    return str(folder / "stored"), job.run()


def numbers(batch):
    return batch.stored["a.v"][:, 0].mul(40).round().long()


def test_members_that_hold_several():
    names = ["json", "10.txt", "txt", "2.txt", "1.txt", "01.txt", "x.txt", "txt.1", "³.txt"]
    assert alternatives_of(names, ["txt", "caption"]) == ["txt", "1.txt", "2.txt", "10.txt"]
    assert alternatives_of(["1.txt", "0.txt"], "TXT") == ["0.txt", "1.txt"] and ending_of(["0.txt"], "txt") == "0.txt"
    assert alternatives_of(names, "png") == [] and ending_of(names, "png") is None
    with pytest.raises(ValueError, match=r"it has \.jpg and \.png, of which a sample may have one"):
        alternatives_of(["jpg", "1.png"], ["jpg", "png"])
    frames = [f"{i}.png" for i in range(MOST + 1)]  # clip.0.png, clip.1.png: one key for them all
    with pytest.raises(ValueError, match=r"101 members \.0\.png to \.100\.png, more than 100 .*name of its own before"):
        alternatives_of(frames, "png")
    with pytest.raises(ValueError, match=r"sample clip: it has 101 members"):
        RawDataset(
            RecordsInMemory([{"__key__": "clip", **dict.fromkeys(frames, b"")}]), RawReader(CODECS, {"b": "png"})
        )


def test_all_are_stored_and_counted_and_tensors_are_the_same_from_anywhere(tmp_path):
    folder, tally = encoded(tmp_path, rows())
    assert tally.several == {"a": 30} and "30 with several a: one is drawn at each use" in str(tally)
    assert json.loads((tmp_path / "stored/manifest.json").read_text())["tally"]["several"] == {"a": 30}
    assert all(set(row) == {"__key__", "__url__", "json", STORED} for row in read_having(folder, STORED))
    mapped, held = StoredDataset.at(folder, in_memory=False), StoredDataset.at(folder, in_memory=True)
    assert isinstance(mapped.tensors, TensorsOnDisk) and isinstance(held.tensors, TensorsInMemory)
    assert len(mapped) == len(held) == 40
    summary = "40 samples, 1 without a, 8 without b, 30 with several a (of 99 in all one is drawn at each use)"
    assert mapped.summary == held.summary == summary
    reader = RawReader(CODECS, MEMBERS)
    encoder = SampleEncoder(reader, 8, missing="keep")
    stacked = StoredDataset(stack([stored for _, stored in encoder.tensors(rows(), "rows", Tally())]))
    raws = RawDataset(open_index(str(tmp_path / "raw")), reader)
    seen = Counter()
    for step in range(100):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(step))[:16]
        at = Place(order, torch.arange(16), step, seed=7)
        batch = mapped[at]
        same(batch, held[at])
        same(batch, stacked[at])
        has = batch.present["a"]
        assert torch.equal(has, raws[at].present["a"])
        assert numbers(batch)[has].tolist() == [
            x for x, present in zip(raws[at].raws["a"], has, strict=True) if present
        ]
        assert (numbers(batch)[has] % 100 == order[has]).all() and not numbers(batch)[~has].any()
        seen.update(numbers(batch)[has].tolist())
    assert set(seen) == {i + 100 * j for i in range(40) if i != 8 for j in range(i % 4 + 1)}
    for data in (mapped, held, stacked):
        assert numbers(data[Place(torch.arange(40), torch.arange(40), 3)]).tolist() == [*range(8), 0, *range(9, 40)]
    assert raws.summary.startswith("40 samples, 1 without a, 8 without b, 30 with several a (of 99 in all")


def test_a_draw_is_of_seed_step_and_place_in_the_global_batch():
    counts = {"a": torch.full((4000,), 3), "b": torch.full((4000,), 3)}
    index = torch.arange(4000)

    def chosen(step=1, seed=0, part=slice(None)):
        place = Place(index[part], index[part], step, seed=seed)
        return place.choose({name: count[part] for name, count in counts.items()})

    one = chosen()
    assert torch.equal(one["a"][1000:1010], chosen(part=slice(1000, 1010))["a"])
    assert all((one["a"] == other).float().mean() < 0.5 for other in (one["b"], chosen(2)["a"], chosen(1, 1)["a"]))
    share = torch.bincount(one["a"], minlength=3) / 4000
    assert (share - 1 / 3).abs().max() < 5 * (2 / 9 / 4000) ** 0.5
    orders = GlobalOrder(40, 8, micro_batch_size=4, seed=5, rank=0, world=1, first_step=0, num_steps=2)
    assert {place.seed for place in orders} == {5}
    assert {place.seed for place in InOrder(40, 8, rank=0, world=1)} == {None}, "validation draws nothing"


class SeveralSource(RowsSource):
    def samples(self, split):
        yield from rows()


def test_stored_raw_and_source_are_the_same_run_and_all_is_trained_on(tmp_path):
    folder, _ = encoded(tmp_path, rows())
    raws, options = str(tmp_path / "raw"), {"batch_size": 16, "seed": 5}
    expected = losses(OrderedData(folder, folder, **options), tmp_path)
    for where, samples, workers in (
        (folder, StoredSamples(in_memory=False), 1),
        (raws, RawSamples(MEMBERS), 1),
        (None, SourceSamples(SeveralSource(), MEMBERS, missing="keep"), 0),
        (None, SourceSamples(SeveralSource(), MEMBERS, missing="keep", cache=False), 0),
    ):
        data = OrderedData(where or "train", where or "validation", samples, num_workers=workers, **options)
        assert losses(data, tmp_path) == pytest.approx(expected, rel=1e-6), samples
    first = [{key: value for key, value in row.items() if not key.endswith(".num")} for row in rows()]
    folder_of_first, _ = encoded(tmp_path / "first", first)
    assert losses(OrderedData(folder_of_first, folder, **options), tmp_path) != expected

    def batches(micro):
        loader = attached(OrderedData(folder, None, StoredSamples(), 16, micro, seed=3)).train_dataloader()
        return torch.cat([numbers(batch) for batch in loader]).tolist()

    assert batches(16) == batches(4)


def test_what_is_empty_or_cleaned_to_nothing_is_none_of_them(tmp_path):
    several = numbered("num", [b"1", b"2", b"3", b"4"])
    folder, tally = encoded(tmp_path, [raw(0, **several), raw(2), raw(5)], clean={"a": OddCleaner()})
    assert tally.several == {"a": 1} and str(tally).startswith("3 of 3 samples")
    raws = RawDataset(open_index(str(tmp_path / "raw")), RawReader(CODECS, MEMBERS, {"a": OddCleaner()}))
    stored, seen = StoredDataset.at(folder), set()
    for step in range(12):
        at = Place(torch.arange(3), torch.arange(3), step, seed=0)
        assert numbers(stored[at]).tolist()[:2] == raws[at].raws["a"][:2]
        assert stored[at].present["a"].tolist() == raws[at].present["a"].tolist() == [True, True, False]
        seen.add(int(numbers(stored[at])[0]))
    assert seen == {2, 4}


def test_one_that_cannot_be_read_is_the_samples_fault_which_is_named(tmp_path):
    bad = [raw(0), raw(1, **numbered("num", [b"1", b"one"]))]
    with pytest.raises(ValueError, match=r"sample 0001 of .*: member \.1\.num: could not convert"):
        encoded(tmp_path, bad)
    raws = RawDataset(open_index(str(tmp_path / "raw")), RawReader(CODECS, MEMBERS))
    with pytest.raises(ValueError, match=r"sample 0001 of .*00000\.tar, member \.1\.num: could not convert"):
        raws[Place(torch.arange(2), torch.arange(2), 0)]
    _, tally = encoded(tmp_path, bad, damage=Damage("skip_sample", 0.6))
    assert (tally.kept, tally.lost, tally.several) == (1, 1, {})


# --- columns in memory, and others that read shards ---


class Numbers(ShardData):
    def read(self):
        found = list(self.parsed_all(("num", float), ("b", float)))
        return {"x": Alternatives(several for several, _ in found), "b": [first for (first,) in (b for _, b in found)]}


def test_columns_draw_in_each_epoch_alike(tmp_path):
    write_shards(tmp_path, [row for row in rows() if "b" in row])
    data = Numbers(str(tmp_path), batch_size=8, holdout=0.25, seed=3)
    with pytest.warns(UserWarning, match=r"left out: 1 of 32"):
        data.setup()
    assert isinstance(data.training, Batches) and len(data.training) == 23
    loader, seen, passes = data.train_dataloader(), set(), []
    for epoch in (0, 1, 2, 0):
        loader.sampler.set_epoch(epoch)
        found = [x for batch in loader for x in zip(batch["x"], batch["b"], strict=True)]
        assert all(x % 100 == -b for x, b in found)
        passes.append({b: x for x, b in found})
        seen |= {x for x, _ in found}
    assert passes[0] == passes[3] != passes[1] and len(seen) > 35
    other = {b: x for rows in Shuffled(23, 5, 3) for b, x in zip(*(data.training[rows][k] for k in "bx"), strict=True)}
    assert other == passes[0], "another batch size draws the same"
    held_out = [x for batch in data.val_dataloader() for x in batch["x"]]
    assert held_out == data.held_out.columns["x"] and all(x < 100 for x in held_out), "the first of each"
    assert data.training[Rows([0])] == {name: column[:1] for name, column in data.training.columns.items()}


def test_who_reads_one_gets_the_first(tmp_path):
    write_shards(tmp_path, [raw(1, **{"num": None, "0.num": b"1", "3.num": b"301"}), raw(2, **{"7.num": b"702"})])
    assert len(list(read_shards(tmp_path))) == 2
    found = list(read_having(tmp_path, ["x", "num"]))
    assert [(row["x"], row.get("1.x")) for row in found] == [(b"1", b"301"), (b"2", b"702")]
    assert all("num" not in row or row["num"] == row["x"] for row in found) and not any("3.num" in row for row in found)
    samples = load_samples(tmp_path, {"num": CODECS["a"]})
    assert samples.raws == {"num": [1.0, 2.0]} and samples.others == {"num": [301.0, 702.0]}
