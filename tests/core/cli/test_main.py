"""Signals and exit codes of every command."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys

import pytest

from tests.core.tiny import make
from unidiff_core.cli.main import COMMANDS, main

pytestmark = pytest.mark.usefixtures("heard")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_with_a_sentence_and_the_right_code(monkeypatch, capsys, command, number):
    seen = []

    def run(argv):
        try:
            signal.raise_signal(number)
        finally:
            seen.append(signal.getsignal(signal.SIGINT))

    before = [signal.getsignal(row) for row in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(importlib.import_module(f"unidiff_core.cli.{COMMANDS[command][0]}"), "run", run)
    with pytest.raises(SystemExit) as stop:
        main([command])
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 128 + number
    assert said.startswith(f"unidiffuser {command}: interrupted; ") and "\n" not in said
    assert (seen[0] == signal.SIG_DFL) == (number == signal.SIGINT)  # Ctrl-C once more ends the process at once
    assert [signal.getsignal(row) for row in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("words", [["--help"], ["recipe"]])
def test_a_reader_that_has_seen_enough_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "unidiff_core.cli.main", *words]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=env)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_whoever_reads_no_output_ends_a_command_that_has_written_all(tmp_path, monkeypatch, registered):
    make().save_pretrained(tmp_path / "model")
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["sample", "model", "a, b", "--steps=1"])
    assert end.value.code == 128 + signal.SIGPIPE and (tmp_path / "out/b/00000.num").is_file()


def test_what_the_system_refuses_is_said_without_its_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").touch()
    with pytest.raises(SystemExit) as end:
        main(["recipe", "digits"])
    assert end.value.code == 2 and capsys.readouterr().err == "unidiffuser: recipes/digits: not a directory\n"


def test_an_error_is_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit):
        main(["smaple"])
    assert max(map(len, capsys.readouterr().err.splitlines())) <= 40


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "5"}, "5")]
)
def test_threads_give_way_to_other_jobs_unless_they_are_told_not_to(monkeypatch, capsys, given, spins):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main(["recipe"])
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_torch_is_not_there_before_threads_are_told_how_to_wait():
    """Its runtime reads that once, as it is loaded."""
    code = "import sys, unidiff_core.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
