"""The newest checkpoint that verifies, whoever wrote it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unidiff_core.foundation.stand_in import torch_reason
from unidiff_core.training.sealed import is_sealed

NEEDED = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")
"""What a checkpoint to go on from has."""


class DamagedError(ValueError):
    """A file that is no whole checkpoint, or one of weights that are not finite."""


class OtherModelError(ValueError):
    """A checkpoint of another model."""


def newest_verified(paths: Iterable[Path], model: nn.Module) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not.

    Args:
        paths: of checkpoints.
        model: that it must fit.

    Raises:
        OtherModelError: if none verifies and one is of another model: it would be written over.
    """
    skipped: list[str] = []
    other: OtherModelError | None = None
    for path in sorted(paths, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            verify(path, model)
        except (DamagedError, OtherModelError) as error:
            skipped.append(f"skipped: {error}")
            other = other or (error if isinstance(error, OtherModelError) else None)
        else:
            return path, skipped
    if other:
        raise other
    return None, skipped


def verify(path: str | Path, model: nn.Module, *, needed: Iterable[str] = NEEDED) -> None:
    """Read a checkpoint to its end before anything is done with it: sums, tensors and plain data only, names, numbers.

    Args:
        path: a file.
        model: whose parameters it must have.
        needed: entries that it must have.

    Raises:
        DamagedError: if it is cut off, damaged, or no checkpoint of tensors and plain data, or not finite.
        OtherModelError: if it is of another model.
    """
    state = _content(path, needed)
    own = model.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape] + [
        name for name in state if name not in own
    ]
    if wrong:
        raise OtherModelError(
            f"the checkpoint {path} is of another model: {len(wrong)} tensors differ, {', '.join(wrong[:3])}, … ; "
            "remove it to start over, or change the configuration back"
        )
    if name := next((name for name, value in state.items() if not value.isfinite().all()), None):
        raise DamagedError(f"the checkpoint {path} has weights that are not finite, {name} for one; remove it")


def _content(path: str | Path, needed: Iterable[str]) -> dict[str, Tensor]:
    try:
        sealed = is_sealed(Path(path))
        with zipfile.ZipFile(path) as archive:
            if any(row.compress_type != zipfile.ZIP_STORED for row in archive.infolist()):
                raise ValueError("it is compressed, which torch does not write")
            if not sealed and (name := archive.testzip()):
                raise ValueError(f"the checksum of {name} does not fit")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if lacking := [name for name in needed if name not in checkpoint]:
            raise ValueError(f"it has no {', '.join(lacking)}")
        state = dict(checkpoint["state_dict"])
        if foreign := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
            raise ValueError(f"{foreign[0]} is no tensor")
        return state
    except Exception as error:  # torch and zipfile name a dozen kinds of damage
        raise DamagedError(
            f"{path} is not a checkpoint that can be read safely and to its end ({type(error).__name__}: "
            f"{torch_reason(error)}); give one that `fit` wrote"
        ) from error
