"""FSDP2: the strategy, and what is distributed over its processes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.export import register_dataclass

from unidiff_core.foundation.argument import check_amounts
from unidiff_core.network.backbone import Backbone
from unidiff_core.process.process import METHODS, Corruption, ForwardProcess


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, data-parallel over all processes, with checkpoints that any strategy reads.

    As Lightning has it by default, all devices of a node are tensor-parallel, and a checkpoint is a folder of shards
    that neither DDP nor a single device can read.

    Args:
        process_group_backend: ``nccl`` or ``gloo``; by the device if not given.
        timeout_minutes: after which a process gives up waiting for the others.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_minutes: float = 30) -> None:
        check_amounts(timeout_minutes=timeout_minutes)
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


def distribute(backbone: Backbone, processes: Iterable[ForwardProcess], mesh: DeviceMesh) -> None:
    """Distribute each of the backbone's layers, then what is left of it, and each process that owns parameters.

    Args:
        backbone: whose `layers` are units.
        processes: each a unit of its own; its methods, not a `forward`, are what gathers its parameters.
        mesh: of one dimension.
    """
    for layer in (*backbone.layers, backbone):
        fully_shard(layer, mesh=mesh)
    _show_tensors_of(Corruption)
    for process in processes:
        if any(True for _ in process.parameters()):
            fully_shard(process, mesh=mesh)
            for method in METHODS:
                register_fsdp_forward_method(process, method)


_shown: set[type] = set()


def _show_tensors_of(kind: type[Corruption]) -> None:
    """Let FSDP2 find the tensors of what `corrupt` returns: it gathers a process's parameters again for the gradient
    that comes through them, which otherwise is computed from memory that was given back (a segmentation fault).
    """
    if kind not in _shown:
        _shown.add(kind)
        register_dataclass(kind)
    for more in kind.__subclasses__():
        _show_tensors_of(more)
