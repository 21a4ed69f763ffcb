"""`unidiffuser new-codec`: what it writes is a whole distribution that works as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import run_command
from unidiff_core.cli.main import main
from unidiff_core.cli.new_codec import TEMPLATE

SHORT = ("--trainer.max_steps=4", "--trainer.val_check_interval=4")


@pytest.fixture
def project(install, monkeypatch):
    """A generated project as the working folder, installed; and the environment of a process that finds it."""
    folder = install("unidiff-sea-level", {"sea_level": "unidiff_sea_level.plugin"})
    monkeypatch.chdir(folder)
    main(["new-codec", "sea_level"])
    monkeypatch.chdir(folder / "unidiff-sea-level")
    places = [str(folder), str(folder / "unidiff-sea-level")]
    for place in places:
        monkeypatch.syspath_prepend(place)
    yield os.environ | {"PYTHONPATH": os.pathsep.join([*places, *sys.path]), "COLUMNS": "200"}
    for name in [name for name in sys.modules if name.split(".")[0] == "unidiff_sea_level"]:
        del sys.modules[name]


def process(*command, env):
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_project_passes_its_tests_is_listed_trains_and_samples(project):
    assert "3 passed" in process("pytest", "-q", env=project)
    listed = run_command("list", "codecs").out.split("\n\n")
    block = next(block for block in listed if block.startswith("SeaL"))
    assert "SeaLevelCodec" in block and "unidiff-sea-level" in block and "values 2×32 /4" in block
    for command in ("shards", "encode", "fit"):
        main([command, "-c", f"recipe/{command}.yaml", *(SHORT if command == "fit" else ())])
    main(["sample", "runs/sea_level", "sea_level", "--num", "3", "--steps", "2", "--out", "out"])
    series = [path.read_text().split(",") for path in sorted(Path("out/sea_level").glob("*.csv"))]
    assert len(series) == 3 and all(1 <= len(numbers) <= 32 for numbers in series)


def test_the_project_has_no_word_of_the_template_and_the_style_of_this_one(project):
    texts = {path: path.read_text() for path in Path().rglob("*") if path.is_file()}
    assert len(texts) == len(list(TEMPLATE.rglob("*.in")))
    assert not [path for path, text in texts.items() if "template" in f"{path}{text}".lower()]
    process("ruff", "check", "--select=E,F,W,I,UP,B,SIM,D1", "--ignore=D100,D103,D104,D107", ".", env=project)
    process("ruff", "format", "--check", ".", env=project)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("3d", "'3d' cannot be a modality's name: take small letters"),
        ("SeaLevel", "as in sea_level"),
        ("sea-level", "cannot be a modality's name"),
        ("class", "is a word of Python"),
        ("core", "the package unidiff_core is there already"),
        ("image", "ImageCodec is already registered by unidiff-core"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(["new-codec", name])
    assert exit.value.code == 2 and says in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    with pytest.raises(SystemExit):
        main(["new-codec", "tides", "--out", str(tmp_path / "mine")])
    assert "is there already; give another folder with --out" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "mine").iterdir())
    main(["new-codec", "tides", "--out", str(tmp_path / "new" / "tides")])
    printed = capsys.readouterr().out
    assert f'pip install --editable "{tmp_path}/new/tides[dev]"' in printed and "unidiffuser list codecs" in printed
    assert (tmp_path / "new/tides/unidiff_tides/codec.py").is_file()
