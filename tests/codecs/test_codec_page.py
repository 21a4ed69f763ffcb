"""docs/codec.md, followed to the letter: its files, its commands in their order, with few steps of training."""

from __future__ import annotations

import re
import shlex
import sys
from itertools import islice
from pathlib import Path

import pytest

from unidiff_core.cli.main import main
from unidiff_core.testing import check_codec

PAGE = (Path(__file__).parents[2] / "docs/codec.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
SHORT = {
    "fit": ["--trainer.max_steps=4"],
    "fit-codec": ["--trainer.max_steps=4", "--trainer.val_check_interval=4"],
    "sample": ["--steps=2"],
}
TINY_TEXT = ("length: 16, width: 16", "length: 10, width: 4")
"""What the page's text networks declare, and what the tests' tiny ones do."""


def write_files():
    """The page's files, at the paths that their first lines name."""
    written = set()
    for _, text in BLOCKS:
        if (match := re.match(r"# (\S+\.(?:py|yaml))\n", text)) and match[1] not in written:
            Path(match[1]).write_text(text.replace(*TINY_TEXT))
            written.add(match[1])
    return written


def run(line):
    """One line of the page's commands; `pip` and `cd` are what the fixture does instead."""
    command, *arguments = shlex.split(line)
    if command == "sed":
        pattern = re.fullmatch(r"s/(.*)/(.*)/", arguments[1])
        for path in map(Path, arguments[2:]):
            assert pattern[1] in path.read_text()
            path.write_text(path.read_text().replace(pattern[1], pattern[2]))
    elif command == "python":
        assert pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "tests"]) == 0
    elif command == "unidiffuser":
        main([*arguments, *SHORT.get(arguments[0], [])])
    else:
        raise AssertionError(line)


@pytest.fixture
def package(install, monkeypatch):
    """The folder `unidiff-points`, as `new-codec` and an editable installation leave it."""
    folder = install("unidiff-points", {"points": "unidiff_points.plugin"})
    monkeypatch.chdir(folder)
    main(["new-codec", "points"])
    monkeypatch.chdir(folder / "unidiff-points")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend(str(folder / "unidiff-points"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("unidiff_points", "test_points")]:
        del sys.modules[name]


def test_every_line_of_the_page_works_in_order(package, clip, text_decoder, capsys):
    lines = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
    assert [shlex.split(line)[0] for line in lines[:3]] == ["unidiffuser", "pip", "cd"]
    written = write_files()
    assert len(written) == 9
    Path("runs/digits").mkdir(parents=True)
    Path("runs/digits/clip").symlink_to(clip)
    Path("runs/digits/text_decoder").symlink_to(text_decoder)
    for line in lines[3:]:
        run(line)
    printed = capsys.readouterr().out
    assert "PointsCodec" in printed and "runs/points/network: mse" in printed
    assert len(list(Path("out/points").glob("*.xyz"))) == 8
    assert len(list(Path("out/given/points").glob("*.xyz"))) == 4
    assert len(Path("out/joint/text/texts.jsonl").read_text().splitlines()) == 4
    the_codec_with_a_network_keeps_the_contract()

    the_vector_trains_and_samples()


def the_vector_trains_and_samples():
    for path in (Path("recipe/encode.yaml"), Path("recipe/fit.yaml")):
        text = path.read_text().replace("PointsCodec", "ShapeCodec")
        path.write_text(text.replace("runs/points/latents", "runs/shape/latents"))
    run("unidiffuser encode -c recipe/encode.yaml")
    run("unidiffuser fit -c recipe/fit.yaml --trainer.default_root_dir=runs/shape")
    run("unidiffuser sample runs/shape points --out out/shape")
    assert Path("out/shape/points/00000.xyz").is_file()


def the_codec_with_a_network_keeps_the_contract():
    shape = __import__("unidiff_points.shape", fromlist=["ShapeCodec"])
    codec = shape.ShapeCodec("runs/points/network")
    source = __import__("unidiff_points.source", fromlist=["PointsSource"]).PointsSource()
    raws = [codec.from_bytes(row["xyz"]) for row in islice(source.samples("train"), 3)]
    assert any("no bound is stated" in remark for remark in check_codec(codec, raws).remarks)
