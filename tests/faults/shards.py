"""Bad shards: eleven kinds of damage and random mutants, under each policy, wherever shards are read.

The clean samples are known, so that a wrong value, a sample that is lost without being counted, and one that is counted
and not lost all show. A policy that skips must lose exactly what it says.
"""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from tests.core.conftest import NumberCodec
from tests.faults.scoreboard import Fault, Outcome
from unidiff_core import Codec, Stream
from unidiff_core.data.columns import ShardData
from unidiff_core.data.damage import Damage
from unidiff_core.data.encoding import RawReader, SampleEncoder
from unidiff_core.data.job import EncodingJob
from unidiff_core.data.location import Shard, list_shards
from unidiff_core.data.order import Place
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.samples import RawSamples
from unidiff_core.data.shard import MANIFEST, STORED, write_shards

POLICIES = ("fail", "skip_sample", "skip_shard")
NUM, SIZE = 30, 6
BUDGET = 0.9
Found = tuple[dict[str, tuple[float, ...]], int]
"""Key → what was read of the samples that were used, and how many were counted as lost."""


class WordCodec(Codec):
    """Texts, as their lengths."""

    extension = "txt"

    @property
    def streams(self) -> Any:
        return {"v": Stream.vector(1)}

    def encode(self, raws: Any) -> Any:
        return {"v": torch.tensor([[float(len(raw))] for raw in raws])}

    def decode(self, latents: Any) -> Any:
        return ["x" * round(n) for n in latents["v"][:, 0].tolist()]

    def from_bytes(self, data: bytes) -> Any:
        return data.decode()

    def to_bytes(self, raw: Any) -> bytes:
        return str(raw).encode()


CODECS = {"a": NumberCodec(), "b": WordCodec()}


def clean() -> dict[str, tuple[float, ...]]:
    """Key → number and length of the text."""
    return {f"{i:04d}": (float(i), float(i % 5 + 1)) for i in range(NUM)}


def write(folder: Path) -> None:
    """Shards of the clean samples, and their manifest."""
    samples = [
        {"__key__": key, "num": str(int(number)).encode(), "txt": b"x" * int(length)}
        for key, (number, length) in clean().items()
    ]
    write_shards(folder, samples, shard_size=SIZE)


# --- the kinds ---


def _members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        return [(row.name, archive.extractfile(row).read()) for row in archive if row.isreg()]  # type: ignore[union-attr]


def _rewrite(path: Path, members: list[tuple[str, bytes]]) -> None:
    """Other members, which the manifest promises: what is wrong was wrong when the shard was written."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    manifest = json.loads((path.parent / MANIFEST).read_text())
    for row in manifest["shards"]:
        if row["name"] == path.name:
            row["sha256"] = sha256(path.read_bytes()).hexdigest()
            row["count"] = sum(1 for _ in _keys(members))
    (path.parent / MANIFEST).write_text(json.dumps(manifest))


def _keys(members: list[tuple[str, bytes]]) -> Iterator[str]:
    last = None
    for name, _ in members:
        if (key := name.partition(".")[0]) != last:
            yield (last := key)


def _changed(path: Path, rng: random.Random, ending: str, data: bytes) -> None:
    members = _members(path)
    at = rng.choice([i for i, (name, _) in enumerate(members) if name.endswith(ending)])
    members[at] = (members[at][0], data)
    _rewrite(path, members)


def _flip(path: Path, rng: random.Random, *, in_header: bool) -> None:
    with tarfile.open(path) as archive:
        member = rng.choice(archive.getmembers())
    content = bytearray(path.read_bytes())
    place = member.offset + rng.randrange(100) if in_header else member.offset_data + rng.randrange(member.size)
    content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, len(content))])


def _double(path: Path, rng: random.Random) -> None:
    members = _members(path)
    key = rng.choice(sorted({name[:4] for name, _ in members}))
    others = [row for row in members if row[0].startswith(key)]
    place = rng.choice([i for i in range(0, len(members) + 1, 2) if members[i - 1 : i] != others[-1:]] or [0])
    if members[place : place + 1] == others[:1]:
        place = len(members) if members[-1] != others[-1] else 0
    _rewrite(path, members[:place] + others + members[place:])


def _lack(path: Path, rng: random.Random) -> None:
    members = _members(path)
    members.pop(rng.randrange(len(members)))
    _rewrite(path, members)


def _mutate(path: Path, rng: random.Random) -> None:
    """One to four random changes of bytes: flips, cuts, blocks that are removed, doubled, zeroed or exchanged."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 5)):
        start = rng.randrange(len(content) or 1)
        end = min(len(content), start + rng.choice((1, 7, 512, 1024, 3000)))
        change = rng.randrange(6)
        if change == 0:
            content[start:end] = b""
        elif change == 1:
            content[start:start] = content[start:end]
        elif change == 2:
            content[start:end] = bytes(end - start)
        elif change == 3:
            content[start:end] = rng.randbytes(end - start)
        elif change == 4:
            content[start : start + 1] = bytes([rng.randrange(256)])
        else:
            block = start // 512 * 512
            content[block : block + 1024] = content[block + 512 : block + 1024] + content[block : block + 512]
    path.write_bytes(content)


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "payload flipped": partial(_flip, in_header=False),
    "header flipped": partial(_flip, in_header=True),
    "cut off": _cut,
    "empty": lambda path, rng: path.write_bytes(b""),  # type: ignore[dict-item,return-value]
    "absent": lambda path, rng: path.unlink(),
    "key twice": _double,
    "modality missing": _lack,
    "wrong shape": lambda path, rng: _changed(path, rng, "num", b"[1, 2]"),
    "text not UTF-8": lambda path, rng: _changed(path, rng, "txt", b"\xff\xfe\xfa"),
}


# --- the doors ---


class Columns(ShardData):
    """What `fit-codec` reads."""

    def read(self) -> dict[str, Any]:
        return {"row": list(self.parsed(("num", float), ("txt", bytes.decode)))}


def encode(raw: Path, folder: Path, damage: Damage, shards: list[Shard] | None = None, **options: Any) -> Found:
    """By `unidiffuser encode`'s job."""
    encoder = SampleEncoder(RawReader(CODECS), 4, damage=damage)
    shards = shards or list_shards(raw, allow_absent=damage.policy != "fail")
    tally = EncodingJob(encoder, shards, folder, **options).run()
    found = {}
    for row in read_shards(folder):
        stored = load(row[STORED])
        found[row["__key__"]] = (float(stored["a.v"][0]), float(stored["b.v"][0]))
    assert len(found) == tally.kept
    return found, tally.lost + sum(tally.dropped.values())


def fit_codec(raw: Path, folder: Path, damage: Damage) -> Found:
    """By a codec's training."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rows = Columns(str(raw), damage=damage).read()["row"]
    texts = [str(row.message) for row in said]
    lost = sum(int(match[1]) for text in texts if (match := re.search(r"(\d+) lost", text)))
    left_out = sum(int(match[1]) for text in texts if (match := re.match(r"left out: (\d+)", text)))
    return {f"{int(number):04d}": (number, float(len(text))) for number, text in rows}, lost + left_out


def fit(raw: Path, folder: Path, damage: Damage) -> Found:
    """By a training on raw shards, which every sample is asked of once. One that lacks a modality is not used here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = RawSamples(damage=damage).open(str(raw), CODECS, torch.device("cpu"))
    found, lacking = {}, 0
    for row in range(len(samples)):
        batch = samples[Place(torch.tensor([row]), torch.tensor([0]), 0)]
        samples.note(batch.lost)
        samples.check()
        if bool(batch.present["a"] & batch.present["b"]):
            key = samples.name(row).split()[1]
            found[key] = (batch.raws["a"][0], float(len(batch.raws["b"][0])))
        else:
            lacking += not batch.lost
    return found, samples.tally.lost + lacking


DOORS = {"encode": encode, "fit-codec": fit_codec, "fit": fit}


# --- the campaign ---


def faults(count: int, seed: int) -> Iterator[Fault]:
    """`count` faults: the kinds in turn, two random mutants for each of them, and now and then a source that fails."""
    rng = random.Random(seed)
    kinds = list(KINDS)
    for number in range(count):
        door = rng.choice(list(DOORS))
        policy = rng.choice(POLICIES)
        chance = random.Random(rng.random())
        if number % 40 == 39:
            how = ("source stalls", "sleep 60", "no byte came") if number % 80 == 39 else ("source fails", "exit 3", "")
            yield Fault(how[0], f"encode, {policy}", partial(_inject_source, end=how[1], policy=policy, rng=chance))
            continue
        kind = kinds[number // 3 % len(kinds)] if number % 3 == 0 else "random mutant"
        spoil = KINDS.get(kind, _mutate)
        run = partial(_inject, spoil=spoil, door=door, policy=policy, rng=chance)
        yield Fault(kind, f"{door}, {policy}, fault {number} of seed {seed}", run)


def _inject(folder: Path, spoil: Callable[..., None], door: str, policy: str, rng: random.Random) -> Outcome:
    write(folder / "raw")
    spoil(folder / "raw" / f"{rng.randrange(NUM // SIZE):05d}.tar", rng)
    promised = sum(row["count"] for row in json.loads((folder / "raw" / MANIFEST).read_text())["shards"])
    run = partial(DOORS[door], folder / "raw", folder / "out", Damage(policy, BUDGET))  # type: ignore[operator,arg-type]
    return judged(run, policy, promised)


def judged(run: Callable[[], Found], policy: str, promised: int) -> Outcome:
    """What came of it: nothing wrong may be read, and what is not read must be counted to the sample."""
    try:
        found, lost = run()
    except (ValueError, OSError) as error:
        return Outcome.DETECTED if policy == "fail" and str(error) else Outcome.SILENT
    if any(clean().get(key) != values for key, values in found.items()):
        return Outcome.SILENT
    if found == clean() and not lost:
        return Outcome.SURVIVED
    return Outcome.DETECTED if len(found) + lost == promised else Outcome.SILENT


def _inject_source(folder: Path, end: str, policy: str, rng: random.Random) -> Outcome:
    write(folder / "raw")
    shards = list_shards(folder / "raw")
    at = rng.randrange(len(shards))
    size = rng.randrange(Path(shards[at].url).stat().st_size)
    broken = Shard(f"pipe:head -c {size} {shards[at].url}; {end}", shards[at].sha256, shards[at].count)
    shards[at] = broken
    damage = Damage(policy, BUDGET, patience=0.2)  # type: ignore[arg-type]
    run = partial(encode, folder / "raw", folder / "out", damage, shards, allow_pipe=True)
    return judged(run, policy, NUM)
