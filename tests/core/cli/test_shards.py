from __future__ import annotations

from pathlib import Path

import pytest
from unidiff_digits.source import DigitsSource

from unidiff_core.cli.shards import _parser, run

RECIPE = Path(__file__).parents[3] / "recipes" / "digits"


def test_shards_command_writes_skips_and_redoes(tmp_path, capsys, monkeypatch):
    options = ["--source=DigitsSource", "--source.scans=2", f"--output={tmp_path}", "--shard_size=10"]
    run(options)
    assert len(list((tmp_path / "train").glob("*.tar"))) == 2
    before = (tmp_path / "train" / "00000.tar").read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(DigitsSource, "splits", property(lambda source: pytest.fail("it is not asked")))
        run(options)
    assert capsys.readouterr().out.count("left alone") == 2
    (tmp_path / "test/manifest.json").unlink()
    run(options)
    assert capsys.readouterr().out.count("left alone") == 1
    for other, said in (
        ("--source.seed=1", r"source\.seed was 0, is 1"),
        ("--shard_size=9", r"shard_size was 10, is 9"),
    ):
        with pytest.raises(ValueError, match=f"is complete, but of other settings: {said}. Give another --output"):
            run([*options, other])
    run([*options, "--source.scans=1", "--overwrite"])
    assert len(list((tmp_path / "train").glob("*.tar"))) == 1
    run([*options, "--overwrite"])
    assert (tmp_path / "train" / "00000.tar").read_bytes() == before


def test_the_digits_recipe_parses():
    assert _parser().parse_args(["-c", str(RECIPE / "shards.yaml")]).shard_size == 1000
