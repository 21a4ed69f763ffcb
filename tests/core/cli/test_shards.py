from __future__ import annotations

import json
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
    source = tmp_path / "train/source.json"
    written = json.loads(source.read_text())
    older = {name: value for name, value in written["init_args"].items() if name != "unseen"}
    source.write_text(json.dumps(written | {"init_args": older}))  # of a version that did not know it
    run(options)
    assert capsys.readouterr().out.count("left alone") == 2
    with pytest.raises(ValueError, match=r"of other settings: source\.unseen was 0\.0, is 0\.5\. Give"):
        run([*options, "--source.unseen=0.5"])
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


@pytest.mark.parametrize("content", ["{}", "[", "[1]"])
def test_a_strangers_file_of_that_name_is_told(tmp_path, content):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/source.json").write_text(content)
    with pytest.raises(ValueError, match=r"did not write, .*train/source\.json; give another --output"):
        run(["--source=DigitsSource", "--source.scans=2", f"--output={tmp_path}"])
