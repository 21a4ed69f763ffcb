"""Workers: processes forked from this one that share independent pieces of work, and end when one of them fails."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from unidiff_core.foundation.error import reason
from unidiff_core.foundation.interrupt import leave_to_parent
from unidiff_core.foundation.plugin import culprit, remember_culprit

T = TypeVar("T")
Piece = Callable[[int], Any]

_work: list[Piece] = []  # of a worker: what it was forked with


def in_workers(work: Callable[[int], T], num: int, workers: int) -> Iterator[T]:
    """``work(0)`` to ``work(num - 1)`` in forked processes, in this order; a failure as soon as there is one.

    What warns in a worker warns here. torch's threads are shared out among the workers. They end with this process,
    however that ends, and leave Ctrl-C and other signals to it.

    Args:
        work: a piece, by number; its result must be picklable, itself it need not be.
        num: pieces.
        workers: processes.

    Raises:
        Exception: what a piece raises; the other workers are ended in the midst of theirs.
        ChildProcessError: if a worker was killed.
    """
    if not num:
        return
    before = set(multiprocessing.active_children())
    seen: dict[Any, int] = {}  # a warning that several workers give is shown once
    pool = ProcessPoolExecutor(
        min(num, workers),
        multiprocessing.get_context("fork"),
        _begin,
        (work, max(1, torch.get_num_threads() // workers)),
    )
    try:
        numbers = {pool.submit(_do, number): number for number in range(num)}
        done: dict[int, T] = {}
        given = 0
        for future in as_completed(numbers):
            done[numbers[future]], warned = future.result()
            for row in warned:
                warnings.warn_explicit(str(row.message), row.category, row.filename, row.lineno, registry=seen)
            while given in done:
                yield done.pop(given)
                given += 1
        pool.shutdown()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {workers} workers was killed, for want of memory perhaps: try fewer; what is done is kept"
        ) from error
    finally:
        _end(set(multiprocessing.active_children()) - before)
        pool.shutdown(cancel_futures=True)


def _end(workers: Iterable[BaseProcess]) -> None:
    """Terminate workers until they have ended.

    A signal that comes while another of its number is still to be heard is lost, and a worker does not obey one that a
    stranger sent: once is not enough where all of a group get one.
    """
    while alive := [worker for worker in workers if worker.is_alive()]:
        for worker in alive:
            worker.terminate()
        wait([worker.sentinel for worker in alive], timeout=0.1)


def _begin(work: Piece, threads: int) -> None:
    _work.append(work)
    torch.set_num_threads(threads)
    leave_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _do(number: int) -> tuple[Any, list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as warned:
        try:
            return _work[0](number), _portable(warned)
        except Exception as error:
            remember_culprit(error)
            if _is_portable(error):
                raise
            whole = (ValueError if isinstance(error, ValueError) else RuntimeError)(reason(error))
            remember_culprit(whole, culprit(error))
            raise whole from None


def _portable(warned: list[warnings.WarningMessage]) -> list[warnings.WarningMessage]:
    return [warnings.WarningMessage(str(row.message), row.category, row.filename, row.lineno) for row in warned]


def _is_portable(error: Exception) -> bool:
    """Whether another process can be sent the error: a stranger's may not be made again from what it holds."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True
