"""An encoding job: many shards into one folder, by one task or many, that may be killed at any time and called again.

A task takes every N-th shard. Each becomes a tar, and then a note ``NAME.tar.json`` beside it: what it was made from,
its hash, and what became of its samples. Both are written whole or not at all, so a shard with its note is done, and
whoever writes the last note finds all there and writes the folder's manifest. Nothing is locked: a shard that two tasks
encode at once comes out the same twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unidiff_core.data.damage import ShardLostError, Tally
from unidiff_core.data.encoding import SampleEncoder
from unidiff_core.data.location import Shard, local_file, stamp
from unidiff_core.data.salvage import Salvage
from unidiff_core.data.shard import (
    MANIFEST,
    STORED,
    Written,
    check_sorted,
    endings_if_own,
    write_manifest,
    write_shard,
)
from unidiff_core.data.workers import in_workers
from unidiff_core.foundation.atomic import write_json
from unidiff_core.foundation.difference import differences, told


@dataclass(frozen=True)
class Note:
    """What is recorded of an encoded shard.

    Attributes:
        shard: the encoded tar.
        source: where its samples came from.
        source_sha256: of that.
        source_stamp: its size, and when its content and its entry were changed (ns), if it was a file.
        settings: how it was encoded; in older folders its digest.
        tally: what became of the samples.
    """

    shard: Written
    source: str
    source_sha256: str
    settings: Any
    tally: dict[str, Any]
    source_stamp: list[int] | None = None


@dataclass
class EncodingJob:
    """Shards → a folder of encoded ones.

    Attributes:
        encoder: of the samples.
        shards: all of the job, in the order of the result.
        target: folder.
        settings: what changes the result, as plain data; shards of other settings are never mixed.
        codecs: modality → its codec as plain data, for the manifest.
        verify: compare each source with the SHA-256 of its manifest, where it has one.
        allow_pipe: whether a ``pipe:`` may run its command.
    """

    encoder: SampleEncoder
    shards: Sequence[Shard]
    target: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
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
        self.check_apart(self.shards)
        if not self.verify:
            self.shards = [replace(shard, sha256=None) for shard in self.shards]

    def check_apart(self, shards: Sequence[Shard]) -> None:
        """Refuse a target that holds a source.

        Raises:
            ValueError: if one of `shards` lies in the target; names it.
        """
        target = self.target.resolve()
        for shard in shards:
            path = local_file(shard)
            if path is not None and target in path.resolve().parents:
                raise ValueError(
                    f"{self.target} holds the source {shard}, which would be overwritten; encode into another folder"
                )

    def is_complete(self) -> bool:
        """Whether all is encoded from the shards as they are now, and the manifest is written.

        Raises:
            ValueError: if the folder is of another job, and --overwrite starts over; or if it is not ours.
        """
        self._check_own()
        path = self.target / MANIFEST
        if not path.is_file():
            return False
        manifest = json.loads(path.read_text())
        names = [row["name"] for row in manifest["shards"]]
        has_others = not set(names) <= set(self.names)
        if has_others:
            raise ValueError(f"{self.target} is complete, but encoded from other shards; --overwrite encodes it again")
        if other := self._other(manifest["settings"]):
            raise ValueError(f"{self.target} is complete, but encoded with {other}; --overwrite encodes it again")
        return names == self.names and not self.unfinished()

    def earlier(self) -> list[Path]:
        """What earlier runs wrote into the target, by any settings: the manifest first.

        Raises:
            ValueError: if something there is not ours.
        """
        self._check_own()
        tars = [path for path in sorted(self.target.glob("*.tar")) if _is_own(path)]
        found = [self.target / MANIFEST, *tars, *(path.with_name(f"{path.name}.json") for path in tars)]
        return [path for path in found if path.is_file()]

    def start_over(self) -> None:
        """Remove what is done: the manifest first, so that the folder never looks complete.

        Raises:
            ValueError: if something there is not ours.
        """
        for path in self.earlier():
            path.unlink(missing_ok=True)

    def run(
        self, task: int = 0, tasks: int = 1, on_shard: Callable[[], None] = lambda: None, workers: int = 1
    ) -> Tally:
        """Encode the shards of one task that are not done, and write the manifest if all are.

        Args:
            task: which task, from 0.
            tasks: how many there are.
            on_shard: called after each shard.
            workers: processes that share the task's shards.

        Returns:
            What became of the task's samples, those of earlier calls included.

        Raises:
            LossError: if more samples are lost than the encoder allows.
            ValueError: if a source is damaged or not what its manifest says; names it.
            ChildProcessError: if a worker was killed.
        """
        self._check_own()
        _remove_partial_files(self.target)
        if self.unfinished():
            (self.target / MANIFEST).unlink(missing_ok=True)  # of what the shards were: it never looks complete
        tally = Tally()
        own = list(zip(self.shards, self.names, strict=True))[task::tasks]
        counts = [shard.count for shard, _ in own]
        total = sum(count or 0 for count in counts) if None not in counts else None
        for note in self._notes(own, tally, total, workers):
            tally.add(Tally.from_dict(note.tally))
            self.encoder.damage.check(tally, total)
            on_shard()
        if not self.unfinished():
            self.finish()
        return tally

    def unfinished(self) -> list[str]:
        """Names of the shards that no task has done yet, or that were done of another content."""
        rows = zip(self.shards, self.names, strict=True)
        return [name for shard, name in rows if self._note(shard, name) is None]

    def finish(self) -> Tally:
        """Write the manifest: the same by whichever task, however often.

        Returns:
            What became of all samples.

        Raises:
            ValueError: if a shard is not done, or no sample is left; says which, or why.
            LossError: if more samples are lost than the encoder allows, over all tasks.
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
        self.encoder.damage.check(tally)
        if not tally.kept:
            raise ValueError(f"nothing is encoded into {self.target}: {tally}")
        notes = {"settings": self.settings, "codecs": self.codecs, "tally": tally.as_dict()}
        write_manifest(self.target, [note.shard for note in done], **notes)
        return tally

    def _notes(self, own: Sequence[tuple[Shard, str]], tally: Tally, total: int | None, workers: int) -> Iterator[Note]:
        """What is recorded of shards, in order, each encoded if it was not; `tally` counts those so far."""
        if workers == 1:
            for row in own:
                yield self._note(*row) or self._encode(*row, tally, total)
            return
        notes = [self._note(*row) for row in own]
        left = [row for row, note in zip(own, notes, strict=True) if note is None]
        try:
            encoded = in_workers(lambda i: self._encode(*left[i], None, total), len(left), workers)
            yield from (note or next(encoded) for note in notes)
            next(encoded, None)  # to its end
        finally:
            _remove_partial_files(self.target)

    def _encode(self, shard: Shard, name: str, earlier: Tally | None, total: int | None) -> Note:
        """Without what came earlier, and the total, nothing can be said of a share that is lost."""
        tally, before = Tally(), stamp(shard)
        samples = Salvage(shard, self.encoder.damage, tally, allow_pipe=self.allow_pipe)

        def check() -> None:
            """Before the tar is in its place."""
            so_far = Tally()
            so_far.add(earlier or Tally())
            so_far.add(tally)
            if earlier is not None or total is not None:
                self.encoder.damage.check(so_far, total)

        def encoded() -> Any:
            rows = iter(samples)
            try:
                yield from self.encoder.samples(rows, str(shard), tally)
            except ValueError as error:
                check_sorted(rows, error)  # what seems to lack a member may be half of a sample
                raise
            check()

        try:
            written = write_shard(self.target / name, encoded())
        except ShardLostError as error:
            tally = samples.tally = Tally()
            samples.lose_rest(str(error))
            check()
            written = write_shard(self.target / name, [])
        note = Note(written, str(shard), samples.sha256, self.settings, tally.as_dict(), before)
        write_json(self.target / f"{name}.json", asdict(note))
        return note

    def _note(self, shard: Shard, name: str) -> Note | None:
        """What is recorded of a shard; None if it is not done, or was made from other content."""
        path = self.target / f"{name}.json"
        if not path.is_file() or not (self.target / name).is_file():
            return None
        row = json.loads(path.read_text())
        note = Note(**row | {"shard": Written(**row["shard"])})
        if other := self._other(note.settings):
            raise ValueError(f"{path.with_suffix('')} was encoded with {other}; --overwrite encodes all again")
        if note.source != str(shard) or not self._is_of(note, shard):
            return None
        return self._unless_changed(note, shard, path)

    def _other(self, settings: Any) -> str:
        """Which settings were others than these, in words; nothing if none were. Older folders have a digest alone."""
        if isinstance(settings, Mapping):
            changed = differences(settings, self.settings)
            return f"other settings: {told(changed)}" if changed else ""
        return "" if settings == _digest(self.settings) else "other settings"

    def _is_of(self, note: Note, shard: Shard) -> bool:
        """Whether a note is of the content that the manifest promises, or of what was lost of that."""
        return shard.sha256 in (None, note.source_sha256) or note.tally.get("shards", 0) > 0

    def _unless_changed(self, note: Note, shard: Shard, path: Path) -> Note | None:
        """The note, if its source is as it was: of the same size and time, or else of the same hash."""
        source, now = local_file(shard), stamp(shard)
        if source is None or note.source_stamp == now:
            return note
        with source.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != note.source_sha256:
                return None
        note = replace(note, source_stamp=now)
        with suppress(OSError):  # a folder that may only be read
            write_json(path, asdict(note))
        return note

    def _check_own(self) -> None:
        """Refuse a target in which something would be replaced that this command did not write."""
        manifest = self.target / MANIFEST
        foreign = [path for name in self.names if (path := self.target / name).exists() and not _is_own(path)]
        if manifest.is_file() and "settings" not in json.loads(manifest.read_text()):
            foreign.append(manifest)
        if foreign:
            raise ValueError(
                f"{self.target} holds what `unidiffuser encode` did not write, {', '.join(map(str, foreign[:3]))}"
                f"{', …' * (len(foreign) > 3)}; encode into another folder"
            )


def _is_own(path: Path) -> bool:
    """Whether a tar is encoded, or empty, and by this package."""
    endings = endings_if_own(path)
    return endings is not None and (not endings or STORED in endings)


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


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
