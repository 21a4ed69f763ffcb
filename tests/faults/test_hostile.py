"""The campaign of hostile files, at a small count, and random input for what reads strangers' files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults import hostile
from tests.faults.scoreboard import Scoreboard
from unidiff_core.data.damage import Damage, Tally
from unidiff_core.data.index import open_index
from unidiff_core.data.location import Shard
from unidiff_core.data.salvage import Salvage
from unidiff_core.data.shard import write_shard
from unidiff_core.sampling.spec import TimestepSpec
from unidiff_core.serialization import model_directory

SLOW = {
    "compressed",
    "compressed tar, member",
    "compressed tar, name",
    "compressed tar, PAX",
    "header of 90 MB",
    "depth",
}
"""Left to the long run."""


def test_no_hostile_file_is_silent(tmp_path):
    """Of each kind every second one."""
    chosen = [name for rows in hostile.PAYLOADS.values() for name in list(map(str, rows))[::2]]
    board = Scoreboard()
    board.run((row for row in hostile.faults(hostile.NUM, 0) if row.name in {*chosen} - SLOW), tmp_path)
    assert board.silent == [] and board.injected >= 60 and board.counts.keys() == hostile.PAYLOADS.keys()


def test_the_campaign_sees_code_that_runs_a_connection_and_a_file_outside(tmp_path):
    for number, act in enumerate(hostile.GUILTY):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(RuntimeError, match=r"os\.system|socket|open /|its code ran"):
            hostile._inject(tmp_path / str(number), act)


SPECS = st.text(alphabet="image text|,@=.0123456789+-*/() \n\x00é", max_size=80)


@settings(max_examples=300, deadline=None)
@given(SPECS)
def test_a_spec_is_read_or_refused(text):
    try:
        TimestepSpec.parse(text, ["image", "text"])
    except ValueError as error:
        assert str(error)


LINES = st.sampled_from(
    [
        "format: 1", "modalities: {a: {codec: {class: UViT}, process: {class: GaussianProcess}, weight: 1}}", "  - x",
        "backbone: {class: UViT}", "balance: elements", "licence: [1]", "x: &a [*a]", "modalities: {a: 1}", "{",
        "sources: {a: b}", "modalities: {1: {codec: null}}", "!!python/name:os.system", "backbone: null", "? - :",
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.lists(LINES, max_size=8).map(lambda rows: "\n".join(rows).encode()), st.binary(max_size=200)))
def test_a_model_directory_is_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_bytes(content)
        try:
            model_directory.load(folder)
        except ValueError as error:
            assert str(error)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_shard_is_read_or_refused_and_all_is_counted(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.tar"
        write_shard(path, [{"__key__": str(i), "num": b"1", "txt": b"x" * 600} for i in range(4)])
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content)))
            content[place : place + data.draw(st.integers(0, 600))] = data.draw(st.binary(max_size=20))
        path.write_bytes(content)
        tally = Tally()
        kept = list(Salvage(Shard(str(path), count=4), Damage("skip_sample"), tally))
        assert len(kept) + tally.lost >= 4 or not tally.errors
        try:
            open_index(path)
        except ValueError as error:
            assert str(error)
