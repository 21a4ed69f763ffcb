"""What several processes decide by files that they share: the first one does, and the others wait until they see it."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from tests.core.group import in_group
from unidiff_core.foundation import shared
from unidiff_core.foundation.distributed import from_the_first


def trainer(rank, world=2, told=None):
    """One of `world` processes, which the first has told something."""
    strategy = SimpleNamespace(broadcast=lambda value: value if rank == 0 else told)
    return SimpleNamespace(world_size=world, global_rank=rank, is_global_zero=rank == 0, strategy=strategy)


def test_the_first_decides_and_the_others_are_not_asked():
    assert shared.decided(trainer(0), lambda: 3) == shared.decided(trainer(0, world=1), lambda: 3) == 3
    assert shared.decided(trainer(1, told=(3, None)), lambda: pytest.fail("asked")) == 3
    assert shared.decided(trainer(1, told=(None, None)), lambda: 4) is None


def test_what_is_wrong_is_wrong_on_all():
    def decide():
        raise FileNotFoundError("no such folder")

    with pytest.raises(FileNotFoundError, match="no such folder"):
        shared.decided(trainer(0), decide)
    with pytest.raises(ValueError, match="no such folder"):
        shared.decided(trainer(1, told=(None, "no such folder")), decide)


def test_a_file_is_waited_for_until_it_is_the_one_that_the_first_sees(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"new")
    wanted = shared.version(path)
    path.write_bytes(b"old")
    assert shared.version(path) != wanted

    def appear():
        time.sleep(0.1)
        path.unlink()
        time.sleep(0.2)
        path.write_bytes(b"new")

    late = threading.Thread(target=appear)
    late.start()
    began = time.monotonic()
    shared.seen_by_all(trainer(1, told=(wanted, None)), lambda: shared.version(path), "it")
    assert time.monotonic() - began >= 0.2 and path.read_bytes() == b"new"
    late.join()


def test_what_does_not_come_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "PATIENCE", 0.2)
    there = trainer(1, told=("3 abc", None))
    with pytest.raises(
        ValueError, match=r"process 1 does not see the checkpoint x as process 0 does, after 0 s; do all"
    ):
        shared.seen_by_all(there, lambda: shared.version(tmp_path / "x"), "the checkpoint x")


def test_all_get_the_firsts_tensors_and_say_what_they_have():
    def call(rank):
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        tensors = {"a": torch.full((3,), float(rank)), "b": torch.nn.Parameter(torch.tensor(rank + 5.0))}
        from_the_first(tensors, torch.device("cpu"))
        return [value.tolist() for value in tensors.values()], shared.everybodys(trainer(rank), rank)

    assert in_group(2, call) == [([[0.0] * 3, 5], [0, 1])] * 2
