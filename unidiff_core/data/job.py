"""An encoding job: many shards into one folder, by one task or many, that may be killed at any time and called again.

A task takes every N-th shard. Each becomes a tar, and then a note ``NAME.tar.json`` beside it: what it was made from,
its hash, and what became of its samples. Both are written whole or not at all, so a shard with its note is done, and
whoever writes the last note finds all there and writes the folder's manifest. Nothing is locked: a shard that two tasks
encode at once comes out the same twice.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unidiff_core.data.encoding import SampleEncoder, Tally
from unidiff_core.data.location import Shard, open_shard
from unidiff_core.data.shard import MANIFEST, Hashed, Written, read_samples, write_manifest, write_shard
from unidiff_core.foundation.atomic import write_json


@dataclass(frozen=True)
class Note:
    """What is recorded of an encoded shard.

    Attributes:
        shard: the encoded tar.
        source: where its samples came from.
        source_sha256: of that.
        settings: digest of how it was encoded.
        tally: what became of the samples.
    """

    shard: Written
    source: str
    source_sha256: str
    settings: str
    tally: dict[str, Any]


@dataclass
class EncodingJob:
    """Shards → a folder of encoded ones.

    Attributes:
        encoder: of the samples.
        shards: all of the job, in the order of the result.
        target: folder.
        settings: digest of what changes the result; shards of other settings are never mixed.
        codecs: modality → its codec as plain data, for the manifest.
        verify: compare each source with the SHA-256 of its manifest, where it has one.
        allow_pipe: whether a ``pipe:`` may run its command.
    """

    encoder: SampleEncoder
    shards: Sequence[Shard]
    target: Path
    settings: str = ""
    codecs: Mapping[str, Any] = field(default_factory=dict)
    verify: bool = True
    allow_pipe: bool = False

    def __post_init__(self) -> None:
        own = [shard.name for shard in self.shards]
        names = [name if name.endswith(".tar") else f"{i:05d}.tar" for i, name in enumerate(own)]
        if twice := sorted(name for name, count in Counter(names).items() if count > 1):
            raise ValueError(
                f"{self.target} would take several shards of the name {', '.join(twice[:3])}; encode them into folders "
                "of their own"
            )
        self.names = names
        if not self.verify:
            self.shards = [replace(shard, sha256=None) for shard in self.shards]

    def is_complete(self) -> bool:
        """Whether the manifest is written.

        Raises:
            ValueError: if it is of another job; says that --overwrite starts over.
        """
        path = self.target / MANIFEST
        if not path.is_file():
            return False
        manifest = json.loads(path.read_text())
        is_other = [row["name"] for row in manifest["shards"]] != self.names
        if is_other or manifest.get("settings", self.settings) != self.settings:
            what = "other shards" if is_other else "other settings"
            raise ValueError(f"{self.target} is complete, but encoded from {what}; --overwrite encodes it again")
        return True

    def start_over(self) -> None:
        """Forget what is done: the manifest first, so that the folder never looks complete."""
        for path in [self.target / MANIFEST, *self.target.glob("*.tar.json")]:
            path.unlink(missing_ok=True)

    def run(self, task: int = 0, tasks: int = 1, on_shard: Callable[[], None] = lambda: None) -> Tally:
        """Encode the shards of one task that are not done, and write the manifest if all are.

        Args:
            task: which task, from 0.
            tasks: how many there are.
            on_shard: called after each shard.

        Returns:
            What became of the task's samples, those of earlier calls included.

        Raises:
            LossError: if more samples are lost than the encoder allows.
            ValueError: if a source is damaged or not what its manifest says; names it.
        """
        _remove_partial_files(self.target)
        tally = Tally()
        for shard, name in list(zip(self.shards, self.names, strict=True))[task::tasks]:
            note = self._note(shard, name) or self._encode(shard, name, tally)
            tally.add(Tally.from_dict(note.tally))
            on_shard()
        if not self.unfinished():
            self.finish()
        return tally

    def unfinished(self) -> list[str]:
        """Names of the shards that no task has done yet."""
        rows = zip(self.shards, self.names, strict=True)
        return [name for shard, name in rows if self._note(shard, name) is None]

    def finish(self) -> Tally:
        """Write the manifest: the same by whichever task, however often.

        Returns:
            What became of all samples.

        Raises:
            ValueError: if a shard is not done; names it.
        """
        rows = [self._note(shard, name) for shard, name in zip(self.shards, self.names, strict=True)]
        done = [row for row in rows if row]
        if len(done) < len(rows):
            absent = [name for name, row in zip(self.names, rows, strict=True) if row is None]
            raise ValueError(
                f"{self.target} is not complete: {len(absent)} of {len(rows)} shards are not encoded, "
                f"{', '.join(absent[:5])}{', …' * (len(absent) > 5)}; run their tasks again"
            )
        tally = Tally()
        for note in done:
            tally.add(Tally.from_dict(note.tally))
        notes = {"settings": self.settings, "codecs": self.codecs, "tally": tally.as_dict()}
        write_manifest(self.target, [note.shard for note in done], **notes)
        return tally

    def _encode(self, shard: Shard, name: str, earlier: Tally) -> Note:
        tally = Tally()
        with open_shard(shard.url, allow_pipe=self.allow_pipe) as stream:
            source = Hashed(stream)

            def encoded() -> Any:
                yield from self.encoder.samples(read_samples(source, str(shard)), str(shard), tally)
                self._check(shard, source.sha256.hexdigest(), tally, earlier)  # before the tar is in its place

            written = write_shard(self.target / name, encoded())
        note = Note(written, str(shard), source.sha256.hexdigest(), self.settings, tally.as_dict())
        write_json(self.target / f"{name}.json", asdict(note))
        return note

    def _check(self, shard: Shard, sha256: str, tally: Tally, earlier: Tally) -> None:
        if shard.sha256 not in (None, sha256):
            raise ValueError(
                f"{shard} is not what its manifest says: SHA-256 {sha256}, not {shard.sha256}; fetch it again"
            )
        so_far = Tally()
        so_far.add(earlier)
        so_far.add(tally)
        so_far.check(self.encoder.max_lost)

    def _note(self, shard: Shard, name: str) -> Note | None:
        """What is recorded of a shard; None if it is not done, or was made from other content."""
        path = self.target / f"{name}.json"
        if not path.is_file() or not (self.target / name).is_file():
            return None
        row = json.loads(path.read_text())
        note = Note(**row | {"shard": Written(**row["shard"])})
        if note.settings != self.settings:
            raise ValueError(f"{path.with_suffix('')} was encoded with other settings; --overwrite encodes all again")
        if note.source != str(shard) or shard.sha256 not in (None, note.source_sha256):
            return None
        return note


def _remove_partial_files(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written."""
    for path in folder.glob(f"*.{socket.gethostname()}.*.partial"):
        process = path.name.split(".")[-2]
        if process.isdigit() and not _is_running(int(process)):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
