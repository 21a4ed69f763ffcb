"""The order of training samples."""

from __future__ import annotations

import itertools

import pytest
import torch

from unidiff_core.data.order import GlobalOrder, InOrder

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


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 24, 25, 32])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_process_validates_as_many_batches_and_each_sample_counts_once(size, world):
    ranks = [list(InOrder(size, 8, rank=rank, world=world)) for rank in range(world)]
    assert len({len(places) for places in ranks}) == 1
    assert [len(InOrder(size, 8, rank=rank, world=world)) for rank in range(world)] == [len(row) for row in ranks]
    real = [row for places in ranks for place in places if not place.is_padding for row in place.rows.tolist()]
    assert sorted(real) == list(range(size))
    assert all(len(place.rows) for places in ranks for place in places)
