"""Damaged files, and disks that refuse: truncations, flipped bits, a power cut, a full disk, a read-only folder."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import random
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

from tests.faults import training
from tests.faults.scoreboard import Fault, Outcome
from unidiff_core import UniDiffuser
from unidiff_core.data.samples import StoredDataset
from unidiff_core.serialization.description import ModelDirectoryError, describe_codecs
from unidiff_core.training.newest import DamagedError, verify

FILES = ("last.ckpt", "model.safetensors", "ema.safetensors", "config.yaml", "clean_std.yaml", "latents")
RARE = 9
"""One of so many faults is of a kind that trains."""


def faults(count: int, seed: int) -> Iterator[Fault]:
    """Cuts and flipped bits of each file by turns, and between them the kinds that train."""
    draw = random.Random(seed)
    slow = _power_cut, _full_disk, _read_only, _other_file_system
    for number in range(count):
        if number % RARE == RARE - 1:
            inject = slow[number // RARE % len(slow)]
            kind = inject.__name__.strip("_").replace("_", " ")
            yield Fault(kind, f"{kind} {number}", partial(inject, draw.randrange(2**30)))
            continue
        file = FILES[number % len(FILES)]
        damage, kind = (_cut, "truncation") if number // len(FILES) % 2 else (_flip, "bit flip")
        where = draw.random()
        yield Fault(f"{kind} of {file}", f"{file} at {where:.6f}", partial(_damaged, file, damage, where))


def _cut(content: bytearray, where: float) -> None:
    del content[int(where * len(content)) :]


def _flip(content: bytearray, where: float) -> None:
    place = int(where * len(content) * 8)
    content[place // 8] ^= 1 << place % 8


@functools.cache
def trained() -> tuple[Path, UniDiffuser, dict[str, dict[str, torch.Tensor]]]:
    """A folder with a training's files, its model, and what each file of weights holds."""
    folder = Path(tempfile.mkdtemp(prefix="faults"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    training.prepare(folder)
    training.train(folder)
    held = {name: load_file(folder / f"run/{name}.safetensors") for name in ("model", "ema")}
    return folder / "run", UniDiffuser.from_pretrained(folder / "run", allow_hub=True), held


def _damaged(file: str, damage: Callable[[bytearray, float], None], where: float, folder: Path) -> Outcome:
    run, model, held = trained()
    if file == "latents":
        return _damaged_latents(run.parent / file, damage, where, folder)
    content = bytearray((run / file).read_bytes())
    damage(content, where)
    for name in FILES[1:5]:
        shutil.copy(run / name, folder / name)
    (folder / file).write_bytes(content)
    try:
        if file.endswith(".ckpt"):
            verify(folder / file, model)
            return Outcome.SILENT
        weights = "model" if file.startswith("model") else "ema"
        loaded = UniDiffuser.from_pretrained(folder, weights=weights, allow_hub=True)  # type: ignore[arg-type]
    except (DamagedError, ModelDirectoryError, ValueError):
        return Outcome.DETECTED
    if not training.same(dict(loaded.state_dict()), held[weights]) or loaded.clean_std != model.clean_std:
        return Outcome.SILENT
    then, now = (describe_codecs({name: row.codec for name, row in m.modalities.items()}) for m in (model, loaded))
    if then == now:
        return Outcome.SURVIVED
    # Another place of a codec's weights: where nothing is, the first use says so.
    pairs = [(row[key], then[name][key]) for name, row in now.items() for key in row]
    changed = [place for place, old in pairs if place != old]
    return Outcome.SILENT if any(Path(place).exists() for place in changed) else Outcome.DETECTED


def _damaged_latents(source: Path, damage: Callable[[bytearray, float], None], where: float, folder: Path) -> Outcome:
    """A shard that was read before, and whose size and time are as they were: an index of it is kept."""
    shutil.copytree(source, folder / "latents")
    (path,) = (folder / "latents").glob("*.tar")
    then = path.stat()
    clean = StoredDataset.at(folder / "latents").everything()
    content = bytearray(path.read_bytes())
    damage(content, where)
    path.write_bytes(content)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    try:
        read = StoredDataset.at(folder / "latents").everything()
    except ValueError:
        return Outcome.DETECTED
    return Outcome.SURVIVED if training.same(read, clean) else Outcome.SILENT


class PowerCut:
    """A disk that keeps what was synced, and nothing else: of a file that was renamed unsynced, the name alone."""

    def __init__(self) -> None:
        self._synced: set[tuple[int, int]] = set()
        self._lost: set[Path] = set()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch what this process syncs and renames."""
        fsync, replace, rename = os.fsync, os.replace, os.rename

        def watched_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self._synced.add(_identity(os.fstat(descriptor)))

        def watched_rename(move: Callable[..., None], source: str, target: str, **options: object) -> None:
            path = Path(target).absolute()
            is_synced = Path(source).is_dir() or _identity(Path(source).stat()) in self._synced
            move(source, target, **options)
            (self._lost.discard if is_synced else self._lost.add)(path)

        with (
            mock.patch.object(os, "fsync", watched_fsync),
            mock.patch.object(os, "replace", partial(watched_rename, replace)),
            mock.patch.object(os, "rename", partial(watched_rename, rename)),
        ):
            yield

    def happen(self) -> None:
        """Take from the disk what it was never made to keep."""
        for path in self._lost:
            if path.is_file():
                path.write_bytes(b"")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def cut_after(step: int) -> None:
    """Have the power cut after a step, in this process."""
    power, watching = PowerCut(), contextlib.ExitStack()
    watching.enter_context(power.watched())
    advance = UniDiffuser.training_step

    def training_step(self: UniDiffuser, batch: object) -> torch.Tensor:
        if self.global_step == step:
            watching.close()  # named here, or it would be closed as soon as nothing holds it
            power.happen()
            os._exit(9)
        return advance(self, batch)  # type: ignore[arg-type]

    UniDiffuser.training_step = training_step  # type: ignore[assignment]


def _power_cut(draw: int, folder: Path) -> Outcome:
    """What was renamed is on the disk, with its content; the run goes on from its last checkpoint."""
    training.prepare(folder)
    step = 4 + draw % (training.STEPS - 4)
    training.Child(folder, before=partial(cut_after, step)).wait()
    if any(path.is_file() and not path.stat().st_size for path in (folder / "run").iterdir()):
        return Outcome.SILENT
    said = training.Child(folder)
    code = said.wait()
    if code or "skipped" in said.said:
        return Outcome.SILENT
    is_same = training.same(training.result(folder), training.uninterrupted())
    return Outcome.SURVIVED if is_same else Outcome.SILENT


def _full_disk(draw: int, folder: Path) -> Outcome:
    """No file grows beyond some bytes: the run ends with a sentence, what was written before is whole."""
    training.prepare(folder)
    training.train(folder, "--trainer.max_steps=3")
    limit = 5_000 + draw % 200_000  # less than a checkpoint, more than what a run says

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the call fails then, as on a full disk

    return _refused_and_resumed(folder, fill, f"[Errno {errno.EFBIG}]")


def _read_only(draw: int, folder: Path) -> Outcome:
    """The folder may only be read from a step on; permissions bind no superuser, so that opening fails instead."""
    training.prepare(folder)
    training.train(folder, "--trainer.max_steps=3")

    def refuse() -> None:
        opened = Path.open

        def read_only(self: Path, mode: str = "r", *arguments: object, **options: object) -> object:
            if "w" in mode and (folder / "run") in self.absolute().parents:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
            return opened(self, mode, *arguments, **options)  # type: ignore[call-overload]

        Path.open = read_only  # type: ignore[assignment]

    return _refused_and_resumed(folder, refuse, f"[Errno {errno.EROFS}]")


def _refused_and_resumed(folder: Path, before: Callable[[], None], reason: str) -> Outcome:
    kept = {path.name: path.read_bytes() for path in (folder / "run").glob("*.ckpt")}
    child = training.Child(folder, before=before)
    code, said = child.wait(), child.said
    if code != 2 or reason not in said or "Traceback" in said:
        return Outcome.SILENT
    left = {path.name: path.read_bytes() for path in (folder / "run").glob("*.ckpt")}
    if left != kept:
        return Outcome.SILENT
    for weights in ("model", "ema"):  # a validation may have written them anew before the disk refused
        UniDiffuser.from_pretrained(folder / "run", weights=weights, allow_hub=True)  # type: ignore[arg-type]
    return Outcome.DETECTED if training.resumed(folder) is Outcome.SURVIVED else Outcome.SILENT


def _other_file_system(draw: int, folder: Path) -> Outcome:
    """The folder for temporary files is on another file system, where a rename is not one step, or full."""
    training.prepare(folder)
    replace = os.replace

    def refuse() -> None:
        def across(source: str, target: str, **options: object) -> None:
            if Path(source).absolute().parent != Path(target).absolute().parent:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
            replace(source, target)

        os.replace = os.rename = across  # type: ignore[assignment]

    training.train(folder, before=refuse)
    is_same = training.same(training.result(folder), training.uninterrupted())
    return Outcome.SURVIVED if is_same else Outcome.SILENT
