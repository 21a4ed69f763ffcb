"""A checkpoint as a file: written beside its target, sealed with a hash, synced, renamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from unidiff_core.foundation.atomic import beside

SEAL = b"sha256:"
"""Begins the archive's comment, which ends the file; 64 hexadecimal digits follow."""
_LENGTH = len(SEAL) + 64
_BLOCK = 2**20


class SealedCheckpoints(TorchCheckpointIO):
    """Checkpoints by ``torch.save`` whose zip archive has the SHA-256 of all before it as its comment.

    Lightning writes into the folder for temporary files, moves the file from there without syncing it, and holds it in
    memory a second time. Anything that reads zip archives, ``torch.load`` among it, reads a sealed one as any other.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; what was there stays until the new one is whole and on the disk."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as partial, partial.open("w+b") as stream:
            try:
                torch.save(checkpoint, stream)
            except RuntimeError as error:  # torch ends an archive that the disk refused, and hides why it did
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            _seal(stream)
            stream.flush()


def _seal(stream: BinaryIO) -> None:
    """Add the comment; the archive's last two bytes are the length of what follows."""
    stream.seek(-2, os.SEEK_END)
    stream.write(_LENGTH.to_bytes(2, "little"))
    size = stream.tell()
    stream.seek(0)
    digest = _digest(stream, size)
    stream.seek(size)
    stream.write(SEAL + digest.encode())


def is_sealed(path: Path) -> bool:
    """Check a seal: False if a checkpoint has none, as those that were written by others.

    Raises:
        ValueError: if it does not fit the content.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END) - _LENGTH
        if size < 0:
            return False
        stream.seek(size)
        seal = stream.read()
        if not seal.startswith(SEAL):
            return False
        stream.seek(0)
        if (found := _digest(stream, size)) != seal.removeprefix(SEAL).decode("ascii", "replace"):
            raise ValueError(f"its SHA-256 is {found}, not that of its seal")
    return True


def _digest(stream: BinaryIO, size: int) -> str:
    """SHA-256 of the next `size` bytes."""
    digest = hashlib.sha256()
    while size > 0 and (block := stream.read(min(size, _BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


class Sealed(pl.Callback):
    """Has the trainer write sealed checkpoints, unless it was given another way. `UniDiffuser` brings it along."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the place of Lightning's way."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SealedCheckpoints()
