"""Parameters that lie in shards on several processes (FSDP2), and the tensors of one process.

Everything here leaves plain tensors alone, so that callers need not ask which strategy is running.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from unidiff_core.backbone import Backbone


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, data-parallel over all processes, with checkpoints that any strategy reads.

    As Lightning has it by default, all devices of a node are tensor-parallel, and a checkpoint is a folder of shards
    that neither DDP nor a single device can read.

    Args:
        process_group_backend: ``nccl`` or ``gloo``; by the device if not given.
        timeout_minutes: after which a process gives up waiting for the others.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_minutes: float = 30) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        """Lay all processes out in one dimension."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(backbone: Backbone, mesh: DeviceMesh) -> None:
    """Shard each of the backbone's layers, then what is left of it, over a one-dimensional mesh."""
    for layer in (*backbone.layers, backbone):
        fully_shard(layer, mesh=mesh)


def class_of(value: object) -> type:
    """The class that a module was made of: FSDP2 changes it to one that inherits from its own and the module's."""
    cls = type(value)
    return cls.__bases__[1] if isinstance(value, FSDPModule) else cls


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on the calling process, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def laid_out_like(whole: Tensor, model: Tensor) -> Tensor:
    """A copy of a tensor in the layout, dtype and on the device of `model`. All processes call it together."""
    if isinstance(whole, DTensor):
        return whole.clone()
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
