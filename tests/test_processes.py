"""docs/processes.md: its worked example is a file of a stranger's, followed to the letter."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from unidiff_core.cli.list import entries_of
from unidiff_core.foundation.registry import Registry

PAGE = (Path(__file__).parent.parent / "docs/processes.md").read_text()


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The names of ``coins.py`` as the page has it, then of the blocks after it."""
    file, *blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path_factory.mktemp("yours") / "coins.py"
    path.write_text(file)
    spec = importlib.util.spec_from_file_location("coins", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = dict(vars(module))
    for block in blocks:
        exec(compile(block, "docs/processes.md", "exec"), names)
    return names


def test_the_example_is_followed_and_its_figures_are_those_of_the_page(followed):
    """By counts of 20,000: within 0.02 of what the page says."""
    row = re.search(r"([\d., ]+) for 1, 2, 4, 8, 16 and 32 steps", PAGE)[1]
    said = [float(number) for number in row.split(",")]
    assert len(said) == 6
    assert all(abs(a - b) < 0.02 for a, b in zip(said, followed["distances"].values(), strict=True))


def test_it_is_listed_as_a_process(followed):
    registry = Registry("yours")
    followed["unidiff_register"](registry)
    (entry,) = entries_of(registry)
    assert (entry.name, entry.kind, entry.options) == ("Coins", "processes", {"vocabulary": "None"})
