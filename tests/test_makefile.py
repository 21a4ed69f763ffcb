"""The demo of the Makefile, with a stand-in for the commands: its stages, the time that they say is left, QUICK=1."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
STAGE = re.compile(r"stage (\d) of 8: [\w ]+; about (\d+\.\d) minutes left on two cores(.*)")
LONGEST = 4  # minutes that QUICK=1 may take


def demo(folder, *variables, seconds=0.0):
    """What `make demo` prints, and the arguments of the commands that it runs."""
    command = folder / "unidiffuser"
    command.write_text(f'#!/bin/sh\nsleep {seconds}\nprintf "%s|" ran "$@"; echo\n')
    command.chmod(0o755)
    options = ["--silent", "--old-file=.venv/.installed", "demo", f"BIN={folder}", *variables]
    done = subprocess.run(["make", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    stages = [match for line in lines if (match := STAGE.fullmatch(line))]
    return stages, [line.split("|")[1:-1] for line in lines if line.startswith("ran|")], lines


@pytest.mark.parametrize("quick", [False, True])
def test_each_stage_says_how_long_the_rest_takes(tmp_path, quick):
    stages, commands, lines = demo(tmp_path, *["QUICK=1"] * quick)
    assert [int(match[1]) for match in stages] == list(range(1, 9)) and len(commands) == 8
    minutes = [float(match[2]) for match in stages]
    assert minutes == sorted(minutes, reverse=True) and minutes[-1] > 0
    assert (minutes[0] <= LONGEST) == quick
    assert ("rough samples" in lines[-1] and lines[-1].endswith("trains longer.")) == quick


def test_a_slow_machine_is_told(tmp_path):
    stages, _, _ = demo(tmp_path, "TAKES=.2 .2 .2 .2 .2 .2 .2 10", seconds=0.5)
    assert stages[0][3] == "" and re.fullmatch(r", as it took \d+\.\d times that so far", stages[7][3])
    assert float(stages[7][2]) > 10 / 60


def test_quick_is_the_recipe_with_less_of_it_in_a_run_of_its_own(tmp_path):
    _, commands, _ = demo(tmp_path, "QUICK=1")
    launched = {}
    for path in (ROOT / "recipes/digits_quick").glob("*.yaml"):
        launch = next(line for line in path.read_text().splitlines() if line.startswith("#   unidiffuser"))
        launched[path.name] = launch.split()[2:]
    with_recipe = [words for words in commands if "-c" in words]
    assert sorted(with_recipe) == sorted(launched.values()), "the Makefile and the recipes say the same"
    written = [words for words in commands if words not in with_recipe]
    assert [words[:2] for words in written] == [["sample", "runs/digits_quick"]]
    for path in (ROOT / "recipes/digits_quick").glob("*.yaml"):
        text = yaml.dump(yaml.safe_load(path.read_text()))
        runs = re.findall(r"runs/\w+", text)
        assert runs and set(runs) == {"runs/digits_quick"}, "nothing of runs/digits is touched"
