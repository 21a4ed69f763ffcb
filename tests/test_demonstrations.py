"""The demonstrations of benchmarks/demonstrations, in a few steps: that they run as their commands say."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "benchmarks/demonstrations"


@pytest.fixture
def demonstrate(monkeypatch, tmp_path):
    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path), *options])
        monkeypatch.syspath_prepend(FOLDER)
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return json.loads((tmp_path / f"{name}.json").read_text())

    return run


def test_cold_and_masked_train_sample_and_measure_in_a_few_steps(demonstrate, tmp_path):
    rows = demonstrate("cold", "--steps", "2", "--num", "10", "--evaluations", "3")
    assert rows["judge on real test scans"]["digit"] > 0.9
    assert rows["no noise, improved"]["probe"] > 0.2 > rows["noise 1, fading, improved"]["probe"]
    # Ten digits of ten, and a start for each: one sample of a digit cannot vary.
    assert all(row["variety"] == 0 for name, row in rows.items() if ", " in name)
    assert Image.open(tmp_path / "cold.png").height == 3 * (4 * 8 + 2)

    rows = demonstrate("masked", "--steps", "2", "--num", "10", "--evaluations", "2,4")
    assert 3 < rows["masked, test scans"]["bits"] < 5  # log2 17 is 4.09: nothing is learnt yet
    assert set(rows) >= {"masked, certain, 4 evaluations", "gaussian, ddpm, 2 evaluations"}


def test_edited_and_encoded_captions_too(demonstrate):
    rows = demonstrate("edited", "--steps", "1", "--num", "20", "--evaluations", "10")
    known = rows["edited, distinct, exact, words edited"]
    assert all(abs(known[f"believed at {num}"] - num) < 1e-6 for num in (1, 4, 10))
    assert rows["edited, exact, revert, 10 evaluations"]["grammatical"] == 1
    assert rows["edited, exact, reedit, 10 evaluations"]["grammatical"] < 1
    leaks = [rows[f"{name}, two levels"] for name in ("edited", "edited, distinct")]
    assert leaks[0]["leak"] == 0 and leaks[1]["leak"] == 1
    assert leaks[0]["probe"] < 0.2 and leaks[1]["probe"] > 0.7

    rows = demonstrate("encoded", "--steps", "1", "--num", "5", "--evaluations", "2")
    assert rows["normalised"]["size"] == 1 and rows["not normalised"]["size"] != 1
    assert 1.2 < rows["data"]["entropy"] < 1.5 and set(rows) >= {"not normalised, ddpm, 2 steps"}
