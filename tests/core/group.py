"""Several processes of a group, forked from this one: what a function gives on each."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

SECONDS = 120


def in_group(world: int, call: Callable[[int], Any]) -> list[Any]:
    """Call a function with the rank on each of `world` processes, which a Lightning trainer takes for torchrun's.

    Raises:
        RuntimeError: if one fails, or does not end; the others are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = [context.SimpleQueue() for _ in range(world)]
    running = [context.Process(target=_as_rank, args=(call, rank, world, port, answers[rank])) for rank in range(world)]
    for process in running:
        process.start()
    for process in running:
        process.join(SECONDS)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    if any(code != 0 for code in codes):
        raise RuntimeError(f"the processes ended with {codes}")
    return [queue.get() for queue in answers]


def _as_rank(call: Callable[[int], Any], rank: int, world: int, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update(addresses | {name: str(value) for name, value in ranks.items()})
    answers.put(call(rank))
