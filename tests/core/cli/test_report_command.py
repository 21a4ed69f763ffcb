"""``unidiffuser report``: what it writes, and what it says of what it cannot read."""

from __future__ import annotations

import json

import pytest

from tests.command import run_command
from unidiff_core.cli.main import main

CELL = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 10}


@pytest.fixture
def runs(tmp_path):
    """Two folders with a log and an evaluation each."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("epoch,step,train/loss\n0,9,1.5\n0,19,1.25\n")
        read = {"queries": {"a | b": {"m": CELL}}, "criteria": [], "settings": {"seed": 0}}
        (tmp_path / name / "evaluation.json").write_text(json.dumps(read))
    return tmp_path


def test_a_run_and_two_runs(runs):
    done = run_command("report", "one", cwd=runs)
    assert (done.code, done.out, done.err) == (0, "1 columns of 1 files, to step 20\none/training.html\n", "")
    done = run_command("report", "one", "two", "--out", "pages/both.html", cwd=runs)
    said = "0 of 1 metrics that both have are apart: their 95 % intervals do not overlap\npages/both.html\n"
    assert (done.code, done.out, done.err) == (0, said, "")
    assert "<svg" in (runs / "one/training.html").read_text() and "<svg" in (runs / "pages/both.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere is not there: give a run's folder"),
        (["one/metrics.csv"], "one/metrics.csv is a file: give a run's folder"),
        (["empty"], "empty has no metrics.csv with a row"),
        (["one", "nowhere"], "nowhere is not there: give two folders"),
        (["one/evaluation.json", "two"], "one/evaluation.json is a file: give two folders"),
        (["one", "empty"], "empty has no evaluation.json: evaluate it first, `unidiffuser evaluate empty -c"),
        (["one", "one"], "one and one are one folder"),
        (["one", "--out=empty"], "--out=empty is a folder; name a file in it, empty/training.html say"),
        (["one", "two", "three"], "three"),
        ([], "it needs RUN"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_paragraph(arguments, says, runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir()
    with pytest.raises(SystemExit) as exit:
        main(["report", *arguments])
    said = capsys.readouterr().err
    assert (
        exit.value.code == 2
        and says in " ".join(said.split())
        and "\n\n" not in said
        and said.count("unidiffuser: ") == 1
    )
    assert not (runs / "nowhere").exists() and not list(runs.glob("**/*.html"))
