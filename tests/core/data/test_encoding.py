"""Encoding: what is kept, dropped and lost, and that each is counted; the command over many tasks."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from unidiff_core import Codec, Stream
from unidiff_core.cli import encode
from unidiff_core.data.cleaner import Cleaner
from unidiff_core.data.damage import Damage, LossError, Tally
from unidiff_core.data.encoding import RawReader, SampleEncoder
from unidiff_core.data.filter import Filter
from unidiff_core.data.index import open_index
from unidiff_core.data.job import EncodingJob, _is_running
from unidiff_core.data.location import list_shards
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.shard import STORED, find_shards, write_shards


class NumberCodec(Codec):
    """Numbers as vectors."""

    extension = "num"
    seconds = 0.0

    @property
    def streams(self):
        return {"v": Stream.vector(3)}

    def encode(self, raws):
        time.sleep(self.seconds)
        return {"v": torch.tensor(raws, dtype=torch.float32)[:, None] * torch.tensor([1.0, 2.0, 3.0])}

    def decode(self, latents):
        return latents["v"][:, 0].tolist()

    def from_bytes(self, data):
        return float(data)

    def to_bytes(self, raw):
        return str(raw).encode()


class OddCleaner(Cleaner):
    """Nothing is left of odd numbers."""

    def clean(self, raw):
        return None if raw % 2 else raw


def sample(i, **members):
    fields = {"width": 100 * i, "pwatermark": i / 10, "label": "x"}
    row = {"__key__": f"{i:04d}", "num": str(i).encode(), "b": str(-i).encode(), "json": json.dumps(fields).encode()}
    return {key: value for key, value in (row | members).items() if value is not None}


def encoder(clean=None, **options):
    reader = RawReader({"a": NumberCodec(), "b": NumberCodec()}, {"b": "b"}, clean)
    return SampleEncoder(reader, **{"batch_size": 4} | options)


def encoded(rows, **options):
    tally = Tally()
    found = {row["__key__"]: load(row[STORED]) for row in encoder(**options).samples(rows, "some.tar", tally)}
    assert tally.kept == len(found)
    assert tally.read == len(rows) == tally.kept + tally.lost + sum(tally.dropped.values())
    return found, tally


def test_filters_keep_what_is_within_bounds_and_count_the_rest():
    keep = [Filter("width", at_least=300), Filter("pwatermark", below=0.5)]
    found, tally = encoded([sample(i) for i in range(8)], keep=keep)
    assert sorted(found) == ["0003", "0004"]
    assert tally.dropped == {"width < 300": 3, "pwatermark >= 0.5": 3}
    assert str(tally).splitlines()[1:] == ["  3 dropped: pwatermark >= 0.5", "  3 dropped: width < 300"]


def test_numbers_as_text_count_and_null_nan_and_words_are_absent():
    filter = Filter("width", at_least=512, absent="drop")
    values = ["512", 511.9, None, float("nan"), "wide", [1]]
    reasons = [filter.reason({"json": json.dumps({"width": value}).encode()}) for value in values]
    assert reasons == [None, "width < 512", *["no width"] * 4]
    assert filter.reason({"txt": b""}) == "no width"
    assert Filter("width", at_least=512, absent="keep").reason({"json": b"{}"}) is None


def test_an_absent_number_is_an_error_that_lists_the_fields():
    with pytest.raises(
        ValueError, match=r"sample 0001 of some\.tar: .*no number 'hight'.*label, pwatermark, width.*absent"
    ):
        encoded([sample(1)], keep=[Filter("hight", at_least=1)])
    for content, says in ((b"{", "member .json"), (b"[]", "no JSON object")):
        with pytest.raises(ValueError, match=says):
            encoded([sample(1, json=content)], keep=[Filter("width", at_least=1)])
    with pytest.raises(ValueError, match="no bound"):
        Filter("width")


def test_a_missing_modality_is_an_error_or_kept():
    rows = [sample(1), sample(2, b=None), sample(3, num=None), sample(4)]
    with pytest.raises(ValueError, match=r"sample 0002 of some\.tar: it has no member \.b for 'b', only json, num"):
        encoded(rows)
    found, _ = encoded([*rows, sample(5, num=None, b=None)], missing="keep", keep=[])
    assert [sorted(found[key]) for key in sorted(found)] == [["a.v", "b.v"], ["a.v"], ["b.v"], ["a.v", "b.v"]]
    assert torch.equal(found["0003"]["b.v"], torch.tensor([-3.0, -6.0, -9.0]))


class FussyCodec(NumberCodec):
    def encode(self, raws):
        return super().encode([{-3.0: {}}.get(raw, raw) for raw in raws])


class LyingCodec(NumberCodec):
    streams = {"v": Stream.vector(4)}  # noqa: RUF012


def test_a_sample_that_a_codec_cannot_encode_is_named_with_the_codec():
    rows = [sample(i) for i in range(5)]
    encoder = SampleEncoder(RawReader({"a": NumberCodec(), "b": FussyCodec()}, {"b": "b"}))
    with pytest.raises(ValueError, match=r"sample 0003 of s\.tar: FussyCodec of module .* cannot encode it: TypeError"):
        list(encoder.samples(rows, "s.tar", Tally()))


def test_no_sample_is_blamed_for_a_codec_that_encodes_none():
    class Unfinished(NumberCodec):
        def encode(self, raws):
            raise ValueError("no folder of weights")

    with pytest.raises(ValueError, match=r"^no folder of weights$"):
        list(SampleEncoder(RawReader({"a": Unfinished()})).samples([sample(1), sample(2)], "s.tar", Tally()))


def test_a_codec_that_stores_what_it_does_not_declare_is_stopped_before_training():
    with pytest.raises(ValueError, match=r"LyingCodec .* 'v' as vector \(4,\) and gives \(3,\)"):
        list(SampleEncoder(RawReader({"a": LyingCodec()})).samples([sample(1)], "s.tar", Tally()))


def test_what_cleaning_empties_is_dropped_or_missing():
    rows = [sample(i) for i in range(4)]
    found, tally = encoded(rows, clean={"b": OddCleaner()})
    assert sorted(found) == ["0000", "0002"] and tally.dropped == {"nothing left of b after cleaning": 2}
    found, tally = encoded(rows, clean={"b": OddCleaner()}, missing="keep")
    assert sorted(found["0001"]) == ["a.v"] and not tally.dropped
    with pytest.raises(ValueError, match="no modality c; there are a, b"):
        encoder(clean={"c": OddCleaner()})


def test_unreadable_samples_stop_at_once_or_are_counted():
    rows = [sample(i, num=b"seven" if i == 5 else None) if i == 5 else sample(i) for i in range(20)]
    with pytest.raises(ValueError, match=r"sample 0005 of some\.tar: member \.num: could not convert"):
        encoded(rows)
    found, tally = encoded(rows, damage=Damage("skip_sample"))
    assert len(found) == 19 and tally.lost == 1 and "sample 0005" in tally.errors[0]
    Damage(max_lost=0.05).check(tally)
    Damage(max_lost=0.01).check(tally, total=100)
    with pytest.raises(LossError, match=r"1 of 20 samples .*damage\.max_lost=0.04 .*sample 0005"):
        Damage(max_lost=0.04).check(tally, total=10)


@pytest.fixture
def raw(tmp_path):
    write_shards(tmp_path / "raw", [sample(i) for i in range(60)], shard_size=5)
    return tmp_path / "raw"


def job(raw, target, seconds=0.0, **options):
    made = EncodingJob(encoder(), list_shards(raw), Path(target), **options)
    for codec in made.encoder.reader.codecs.values():
        codec.seconds = seconds
    return made


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_damaged_or_changed_source_stops_the_job_and_leaves_no_tar(raw, tmp_path):
    flipped = bytearray((raw / "00002.tar").read_bytes())
    flipped[flipped.index(b'"label": "x"') + 10] ^= 1  # no decoder notices
    (raw / "00002.tar").write_bytes(flipped)
    with pytest.raises(ValueError, match=r"00002\.tar is not what its manifest says"):
        job(raw, tmp_path / "out").run()
    assert sorted(content(tmp_path / "out")) == ["00000.tar", "00000.tar.json", "00001.tar", "00001.tar.json"]
    job(raw, tmp_path / "out", verify=False).run()
    assert len(list(read_shards(tmp_path / "out"))) == 60
    (raw / "00003.tar").write_bytes((raw / "00003.tar").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"00003\.tar is damaged"):
        job(raw, tmp_path / "other", verify=False).run()


def test_the_loss_budget_counts_over_the_shards_so_far(tmp_path):
    rows = [sample(i, num=b"?") if i in (7, 8, 21) else sample(i) for i in range(30)]
    write_shards(tmp_path / "raw", rows, shard_size=5)
    (tmp_path / "raw/manifest.json").unlink()
    strict = job(tmp_path / "raw", tmp_path / "out")
    strict.encoder.damage = Damage("skip_sample", 0.15)
    with pytest.raises(LossError, match=r"2 of 10 samples"):
        strict.run()
    assert not (tmp_path / "out/00001.tar").exists()
    strict.encoder.damage = Damage("skip_sample", 0.2)
    assert strict.run().lost == 3
    tally = json.loads((tmp_path / "out/manifest.json").read_text())["tally"]
    assert (tally["read"], tally["kept"], tally["lost"], len(tally["errors"])) == (30, 27, 3, 3)


def test_tasks_share_the_shards_and_the_last_writes_the_manifest(raw, tmp_path):
    job(raw, tmp_path / "one").run()
    for task in (2, 0):
        job(raw, tmp_path / "three").run(task, 3)
        assert not (tmp_path / "three/manifest.json").exists()
    with pytest.raises(ValueError, match=r"4 of 12 shards are not encoded, 00001\.tar, 00004\.tar"):
        job(raw, tmp_path / "three").finish()
    assert job(raw, tmp_path / "three").run(1, 3).read == 20
    assert content(tmp_path / "three") == content(tmp_path / "one")
    assert job(raw, tmp_path / "three").finish().read == 60  # again: the same
    assert content(tmp_path / "three") == content(tmp_path / "one")


def start(*arguments):
    process = multiprocessing.get_context("fork").Process(target=lambda: job(*arguments[:3]).run(*arguments[3:]))
    process.start()
    return process


@pytest.mark.parametrize("tasks", [1, 2])
def test_killed_at_any_time_and_resumed_the_result_is_byte_identical(raw, tmp_path, tasks):
    job(raw, tmp_path / "whole").run()
    rng, kills, seen = random.Random(tasks), 0, set()
    while not (tmp_path / "out/manifest.json").exists():
        running = [start(raw, tmp_path / "out", 0.01, task, tasks) for task in range(tasks)]
        for process in running:
            process.join(rng.uniform(0.05, 0.2))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            process.join()
        seen.add(len(list((tmp_path / "out").glob("*.tar"))))
    assert kills >= 2 and len(seen) >= 2, "it was never interrupted mid-way"
    job(raw, tmp_path / "out").run()  # its partial files go
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_two_processes_on_the_same_shards_do_no_harm(raw, tmp_path):
    job(raw, tmp_path / "whole").run()
    running = [start(raw, tmp_path / "out", 0.002, 0, 1) for _ in range(3)]
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_changed_source_is_encoded_again_and_other_settings_are_refused(raw, tmp_path):
    job(raw, tmp_path / "out").run()
    (tmp_path / "out/manifest.json").unlink()
    write_shards(raw, [sample(i) for i in range(1, 61)], shard_size=5)
    job(raw, tmp_path / "out").run()
    assert next(iter(read_shards(tmp_path / "out")))["__key__"] == "0001"
    other = job(raw, tmp_path / "out", settings={"dtype": "float16"})
    with pytest.raises(ValueError, match="with other settings: dtype was not given, is 'float16'; --overwrite"):
        other.is_complete()
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    older = {"settings": hashlib.sha256(b'{"dtype": "float16"}').hexdigest()}  # as folders were written before
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest | older))
    with pytest.raises(ValueError, match=r"with other settings; --overwrite"):
        job(raw, tmp_path / "out").is_complete()
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(ValueError, match=r"00000\.tar was encoded with other settings: dtype"):
        other.run()
    other.start_over()
    assert other.run().kept == 60 and other.is_complete()


def test_shards_of_one_name_are_refused(raw, tmp_path):
    with pytest.raises(ValueError, match=r"several shards of the name 00000\.tar, 00001\.tar"):
        EncodingJob(encoder(), list_shards([str(raw), str(raw)]), tmp_path / "out")


# --- workers ---


def test_workers_give_the_bytes_that_one_process_gives(raw, tmp_path):
    job(raw, tmp_path / "one").run()
    shown = []
    assert job(raw, tmp_path / "three").run(on_shard=lambda: shown.append(os.getpid()), workers=3).kept == 60
    assert shown == [os.getpid()] * 12, "one bar over all"
    assert content(tmp_path / "three") == content(tmp_path / "one")
    (tmp_path / "three/00004.tar").unlink()
    for task in range(2):  # what is done stays, and tasks may have workers of their own
        job(raw, tmp_path / "three").run(task, 2, workers=2)
    assert content(tmp_path / "three") == content(tmp_path / "one")
    assert job(raw, tmp_path / "three").run(workers=8).kept == 60


class UnportableError(Exception):
    """Cannot be made again from what it holds."""

    def __init__(self, *, text):
        super().__init__(text)


class WarningCodec(NumberCodec):
    """Warns always; raises or dies at a number."""

    raises: Exception | None = None
    at = 31.0

    def encode(self, raws):
        warnings.warn("rounded", stacklevel=1)
        if self.at in raws:
            if self.raises is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise self.raises
        time.sleep(self.seconds)
        return super().encode(raws)


@pytest.mark.parametrize(
    ("raises", "kind", "says"),
    [
        (ValueError("no folder of weights"), ValueError, r"sample 0031 .*cannot encode it: no folder of weights"),
        (UnportableError(text="odd"), ValueError, r"sample 0031 .*cannot encode it: UnportableError: odd"),
        (MemoryError("full"), MemoryError, "full"),
        (None, ChildProcessError, "one of 2 workers was killed"),
    ],
)
def test_a_workers_failure_stops_all_with_its_sentence(raw, tmp_path, raises, kind, says):
    codec = WarningCodec()
    codec.raises, codec.seconds = raises, 0.01
    made = EncodingJob(SampleEncoder(RawReader({"a": codec}), 2), list_shards(raw), tmp_path / "out")
    with warnings.catch_warnings(record=True) as warned, pytest.raises(kind, match=says):
        warnings.simplefilter("default")
        made.run(workers=2)
    assert [str(row.message) for row in warned] == ["rounded"]
    assert not multiprocessing.active_children()
    assert not list((tmp_path / "out").glob("*.partial")) and not (tmp_path / "out/manifest.json").exists()
    codec.at = None
    with pytest.warns(UserWarning, match="rounded"):
        assert made.run(workers=2).kept == 60, "what was done stays"


def test_workers_end_with_a_parent_that_is_killed(raw, tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=lambda: job(raw, tmp_path / "out", 0.2).run(workers=2), daemon=False
    )
    process.start()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2)
    workers = [int(number) for number in children.read_text().split()]
    process.kill()
    process.join()
    wait_until(lambda: not any(_is_running(worker) for worker in workers))
    job(raw, tmp_path / "out").run(workers=2)
    job(raw, tmp_path / "whole").run()
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def wait_until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_budget_is_over_all_workers(tmp_path):
    rows = [sample(i, num=b"?") if i in (7, 21) else sample(i) for i in range(30)]
    write_shards(tmp_path / "raw", rows, shard_size=5)
    for _ in range(2):  # again: what is done counts too
        strict = job(tmp_path / "raw", tmp_path / "out")
        strict.encoder.damage = Damage("skip_sample", 0.05)
        with pytest.raises(LossError, match=r"2 of 30 samples could not be read"):
            strict.run(workers=2)
    assert not (tmp_path / "out/manifest.json").exists()
    (tmp_path / "raw/manifest.json").unlink()  # without the number of all samples: those so far, in order
    loose = job(tmp_path / "raw", tmp_path / "other")
    loose.encoder.damage = Damage("skip_sample", 0.1)
    assert loose.run(workers=2).lost == 2


# --- the command ---

CODECS = {name: {"class_path": f"{__name__}.NumberCodec"} for name in ("a", "b")}


def command(raw, target, *options):
    folders = json.dumps({str(raw): str(target)})
    encode.run(["--codecs", json.dumps(CODECS), "--folders", folders, '--members={"b": "b"}', *options])


@pytest.fixture(autouse=True)
def no_array(monkeypatch):
    """These tests are no task of an array, even if pytest runs in one."""
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_the_command_filters_cleans_and_reports(raw, tmp_path, capsys):
    (tmp_path / "encode.yaml").write_text(
        "keep: [{field: width, at_least: 1000}, {field: pwatermark, below: 3}]\n"
        f"clean: {{b: {{class_path: {__name__}.OddCleaner}}}}\nmissing: keep\n"
    )
    options = ("-c", str(tmp_path / "encode.yaml"))
    command(f"{raw}/{{00000..00007}}.tar", tmp_path / "out", *options)
    out = capsys.readouterr().out
    assert "20 of 40 samples" in out and "10 dropped: width < 1000" in out and "10 dropped: pwatermark >= 3" in out
    tally = json.loads((tmp_path / "out/manifest.json").read_text())["tally"]
    assert tally["dropped"] == {"pwatermark >= 3": 10, "width < 1000": 10}
    assert len(find_shards(tmp_path / "out")) == 8
    assert len(open_index(str(tmp_path / "out"))) == 20, "two of the shards are empty"
    assert len([row for row in read_shards(tmp_path / "out") if "b.v" in load(row[STORED])]) == 10
    command(f"{raw}/{{00000..00007}}.tar", tmp_path / "out", *options)
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(ValueError, match="with other settings: missing was 'keep', is 'error'; --overwrite"):
        command(f"{raw}/{{00000..00007}}.tar", tmp_path / "out", *options, "--missing=error")


def test_like_codecs_are_said_once(raw, tmp_path):
    command(raw, tmp_path / "apart")
    folders = json.dumps({str(raw): str(tmp_path / "together")})
    together = json.dumps({"a, b": CODECS["a"]})
    encode.run(["--codecs", together, "--folders", folders, '--members={"b": "b"}'])
    apart, together = content(tmp_path / "apart"), content(tmp_path / "together")
    assert apart.keys() == together.keys()
    assert {name: row for name, row in apart.items() if name.endswith(".tar")} == {
        name: row for name, row in together.items() if name.endswith(".tar")
    }


def test_the_command_as_tasks_of_an_array(raw, tmp_path, capsys, monkeypatch):
    for number in ("3", "5"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", number)
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "3")
        monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", "2")
        command(raw, tmp_path / "out")
    out = capsys.readouterr().out
    assert "task 0 of 2, 6 of 12 shards" in out and "6 shards left to other tasks" in out
    assert len(list(read_shards(tmp_path / "out"))) == 60
    assert encode.find_task({"RANK": "2", "WORLD_SIZE": "4"}) == (2, 4) and encode.find_task({"RANK": "2"}) == (0, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--task=2", "--tasks=2"], "no task 2 of 2"),
        (["--damage.max_lost=1"], "no share"),
        (["--overwrite", "--tasks=2"], "for one task"),
        (["--finish"], "12 of 12 shards are not encoded"),
        (["--workers=0"], "--workers counts processes on this machine's processors, from 1"),
    ],
)
def test_the_commands_errors(raw, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        command(raw, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "environment", "num", "expected"),
    [
        ("cuda", {"LOCAL_RANK": "3"}, 8, "cuda:3"),
        ("cuda", {"LOCAL_RANK": "3"}, 2, "cuda:1"),
        ("cuda", {}, 8, "cuda"),
        ("cuda:1", {"LOCAL_RANK": "3"}, 8, "cuda:1"),
        ("cpu", {"LOCAL_RANK": "3"}, 0, "cpu"),
    ],
)
def test_every_process_of_torchrun_has_a_device_of_its_own(device, environment, num, expected):
    assert encode.find_device(device, environment, num) == expected
