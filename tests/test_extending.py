"""docs/extending.md: every block runs, and what it adds is found by its name through the commands' own parsers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unidiff_core.cli import list as listing
from unidiff_core.foundation import plugin

PAGE = (Path(__file__).parent.parent / "docs/extending.md").read_text()


@pytest.fixture(scope="module")
def added():
    """The page's names, after its blocks have run one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {"__name__": "extending"}
    for block in blocks:
        exec(compile(block, "docs/extending.md", "exec"), names)
    return names


def test_every_block_runs(added):
    assert len(added["registry"].registrations) == 14


def test_every_kind_of_the_listing_is_in_the_table(added):
    table = PAGE.partition("| to add a |")[2].partition("\n\n")[0]
    bases = {cls for kind, (_, cls) in listing.KINDS.items() if kind != "others"} - {"CodecTraining", "ForwardProcess"}
    assert all(f"`{cls}`" in table for cls in bases), bases


def test_what_is_added_is_listed_under_its_kind(added):
    registry = plugin.load_plugins()
    registry.merge(added["registry"])
    kinds = {row.name: row.kind for row in listing.entries_of(registry) if row.distribution == "yours"}
    assert kinds == {
        **{"NumberCodec": "codecs", "CountingSource": "sources", "PositiveCleaner": "cleaners"},
        **{"LineSamples": "samples"},
        **{
            "Shrink": "processes",
            "clipped": "solvers",
            "Cosine": "schedules",
            "Dim": "degradations",
            "Late": "laws",
            "Opposed": "laws",
        },
        **{"Mixer": "backbones", "SignJudge": "judges", "Largest": "metrics", "NumberFolder": "converters"},
    }


def test_a_solver_is_found_by_its_name(added, monkeypatch):
    load = plugin.load_plugins

    def with_ours(*args):
        registry = load(*args)
        registry.merge(added["registry"])
        return registry

    monkeypatch.setattr("unidiff_core.process.process.load_plugins", with_ours)
    model = added["small"]()
    assert model.sample("a", num=2, steps=2, solver="clipped(0.5)") == model.sample(
        "a", num=2, steps=2, solver=added["Clipped"](0.5)
    )


def test_the_house_page_names_every_file_of_core():
    root = Path(__file__).parent.parent
    page = (root / "docs/house.md").read_text()
    rooms = {
        section.partition("/`")[0]: set(re.findall(r"^\* `(\w+\.py)`", section, re.MULTILINE))
        for section in page.split("\n### `")[1:]
    }
    core = root / "unidiff_core"
    for room, names in rooms.items():
        assert names == {path.name for path in (core / room).glob("*.py")} - {"__init__.py"}, room
    folders = {str(path.parent.relative_to(core)) for path in core.rglob("*.py") if path.name != "__init__.py"}
    assert folders - {"."} == set(rooms)
