"""Tensors that lie in parts on several processes (FSDP2), and the tensors of one process.

Everything here leaves plain tensors alone, so that callers need not ask which strategy is running.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

LOST = ("gloo/transport", "Connection reset by peer", "Connection closed by peer")
"""What gloo says, in plain RuntimeErrors, where another process is gone; other backends have a class for that."""


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process of the group died, or cannot be reached."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST)
    )


@contextmanager
def naming_the_lost(trainer: pl.Trainer, then: str) -> Iterator[None]:
    """Say of the error that the death of another process makes what it is.

    Args:
        trainer: of the processes.
        then: how to go on.

    Raises:
        ConnectionError: in place of such an error.
    """
    try:
        yield
    except RuntimeError as error:
        if trainer.world_size == 1 or not is_lost(error):
            raise
        raise ConnectionError(
            f"process {trainer.global_rank} of {trainer.world_size} stops after step {trainer.global_step}: another "
            "one died, or cannot be reached (what it said itself tells why): "
            f"{str(error).splitlines()[0]}. {then}"
        ) from error


def leave_group() -> None:
    """Leave the group of processes, if this one is in any.

    At the end of a program: threads of gloo that nobody joined abort an interpreter now and then that is through with
    its work, and torchrun takes that for a failure. Lightning leaves groups of NCCL alone.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def class_of(value: object) -> type:
    """The class that a module was made of: FSDP2 changes it to one that inherits from its own and the module's."""
    cls = type(value)
    return cls.__bases__[1] if isinstance(value, FSDPModule) else cls


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on the calling process, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def from_the_first(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Give all processes the first one's tensors, in place. DDP does; FSDP2 makes one model of parts of several.

    Args:
        tensors: by name, in the same order on all processes, which call it together.
        device: over which they can tell each other.
    """
    for value in tensors.values():
        told = value.detach().to(device)
        torch.distributed.broadcast(told, 0)
        value.detach().copy_(told)


def reshard(module: nn.Module) -> None:
    """Let go of weights that a forward pass made whole.

    FSDP2 keeps those of the root until the backward pass: after validation there was none. Until then a module shows
    them in place of its own parts, and computes with them whatever is written into those.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def laid_out_like(whole: Tensor, model: Tensor) -> Tensor:
    """A copy of a tensor in the layout, dtype and on the device of `model`. All processes call it together."""
    if isinstance(whole, DTensor):
        return whole.to(model.dtype, copy=True)
    if isinstance(model, DTensor):
        return distribute_tensor(whole.to(local(model)), model.device_mesh, model.placements)
    return whole.to(model, copy=True)


def gathered(tensors: Mapping[str, Tensor], *, keeps: bool = True) -> dict[str, Tensor]:
    """Whole tensors on the CPU; all processes call it together.

    Args:
        tensors: by name, in the same order on all processes.
        keeps: whether this process wants the result. One tensor at a time is whole elsewhere.
    """
    whole = {}
    for name, value in tensors.items():
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        if keeps:
            whole[name] = tensor.detach().cpu()
    return whole
