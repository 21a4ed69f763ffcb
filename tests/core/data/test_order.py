"""The order of training samples."""

from __future__ import annotations

import itertools

import pytest
import torch

from unidiff_core.data.order import GlobalOrder

pytestmark = pytest.mark.usefixtures("registered")


def test_order_covers_each_epoch_once_and_splits_over_processes():
    def rows(rank, world, first=0):
        order = GlobalOrder(40, 16, micro_batch_size=8 // world, seed=3, rank=rank, world=world, first_step=first)
        return list(itertools.islice(order, 10))

    single = rows(0, 1)
    seen = torch.cat([place.rows for place in single])
    assert torch.equal(seen[:40].sort().values, torch.arange(40)) and not torch.equal(seen[:40], seen[40:80])
    both = [torch.cat([a.rows, b.rows]) for a, b in zip(rows(0, 2), rows(1, 2), strict=True)]
    assert all(torch.equal(a.rows, b) for a, b in zip(single, both, strict=True))
    assert torch.equal(rows(0, 1, first=2)[0].rows, single[4].rows)
    with pytest.raises(ValueError, match="does not split into micro-batches of 5 on 1"):
        GlobalOrder(40, 16, micro_batch_size=5, seed=0, rank=0, world=1, first_step=0)
    with pytest.raises(ValueError, match="fewer than the global batch of 64"):
        GlobalOrder(40, 64, micro_batch_size=64, seed=0, rank=0, world=1, first_step=0)
