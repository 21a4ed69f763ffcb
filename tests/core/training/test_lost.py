"""What may be lost is the run's, however many processes read."""

from __future__ import annotations

import logging
from functools import partial

import pytest

from tests.core.conftest import NumberCodec
from tests.core.group import in_group
from tests.core.tiny import trainer
from unidiff_core import Modality, UniDiffuser
from unidiff_core.data.damage import Damage, LossError
from unidiff_core.data.module import OrderedData
from unidiff_core.data.order import GlobalOrder
from unidiff_core.data.samples import RawSamples
from unidiff_core.data.shard import write_shards
from unidiff_core.network.uvit import UViT

SIZE, BATCH, WORLD = 24, 4, 2
HELD = 8


def rows_of(rank, step):
    """Which samples a process reads in a step."""
    order = GlobalOrder(SIZE, BATCH, micro_batch_size=BATCH // WORLD, seed=0, rank=rank, world=WORLD, first_step=step)
    return next(iter(order)).rows.tolist()


BAD = {rows_of(0, 1)[0], rows_of(1, 3)[1]}
"""One that the first process reads in the second step, and one that the second process reads in the fourth."""


def write(folder, size, bad):
    samples = ({"__key__": f"{i:04d}", "num": b"?" if i in bad else str(i / size).encode()} for i in range(size))
    write_shards(folder, samples)


def fit(folder, max_lost, rank, *, steps=2 * SIZE // BATCH, world=WORLD, **options):
    """After which step it ended, with which error, what was counted as lost and what was logged of it."""
    data = OrderedData(
        str(folder / "raw"), str(folder / "held"), RawSamples(damage=Damage("skip_sample", max_lost)), BATCH,
        BATCH // WORLD,
    )  # fmt: skip
    model = UniDiffuser({"a": Modality(NumberCodec())}, partial(UViT, width=16, depth=3, heads=2))
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("unidiff_core.data.module")
    logger.addHandler(handler)
    more = {"strategy": "ddp", "devices": world} if world > 1 else {}
    run = trainer(folder, steps, num_sanity_val_steps=0, use_distributed_sampler=False, **more, **options)
    error = None
    try:
        run.fit(model, datamodule=data)
    except LossError as lost:
        error = str(lost)
    finally:
        logger.removeHandler(handler)
    return run.global_step, error, data._samples.tally.lost, len(said)


@pytest.fixture
def raw(tmp_path):
    write(tmp_path / "raw", SIZE, BAD)
    write(tmp_path / "held", HELD, set())
    return tmp_path


def test_processes_that_each_lost_too_little_stop_together(raw):
    """In two epochs, where each bad sample is read by other processes too; only those that find it first log it."""

    def both(rank):
        return fit(raw, 1.5 / SIZE, rank), fit(raw, 2 / SIZE, rank)

    ranks = in_group(WORLD, both)
    assert [stopped[0] for stopped, _ in ranks] == [4, 4]
    assert all(f"2 of {SIZE} samples could not be read, more than damage.max_lost" in row[1] for row, _ in ranks)
    assert [(step, error, lost) for _, (step, error, lost, _) in ranks] == [(2 * SIZE // BATCH, None, 2)] * WORLD
    assert [whole[3] for _, whole in ranks] == [1, 1]


def test_one_process_stops_at_the_same_step(raw):
    step, error, lost, _ = fit(raw, 1.5 / SIZE, 0, world=1)
    assert (step, lost) == (4, 2) and f"2 of {SIZE} samples" in error


def test_what_validation_loses_has_its_own_budget(raw):
    write(raw / "held", HELD, {3})
    step, error, *_ = fit(raw, 2 / SIZE, 0, world=1, val_check_interval=4)
    assert step == 2 and f"1 of {HELD} samples could not be read" in error
