from __future__ import annotations

import pytest

from tests.core.evaluation.letters import members
from unidiff_core.data.shard import write_shards
from unidiff_core.evaluation.run import Query, Settings


@pytest.fixture
def settings(tmp_path):
    """Every query of the two modalities, 400 samples each."""
    for split, count in (("train", 80), ("test", 40)):
        write_shards(tmp_path / split, members(split, count), shard_size=30)
    queries = {name: Query(num=400) for name in ("upper | lower", "lower | upper", "upper, lower", "upper", "lower")}
    return Settings(str(tmp_path / "train"), str(tmp_path / "test"), queries, batch_size=150)
