"""What the README says is so: its code runs, its files are there, its figures are the committed evaluation's."""

from __future__ import annotations

import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from unidiff_core import Modality, UniDiffuser
from unidiff_core.cli import fit
from unidiff_core.cli.evaluate import _with_sweeps
from unidiff_core.cli.main import COMMANDS
from unidiff_core.cli.option import tidied
from unidiff_core.foundation.registry import Registry
from unidiff_core.network.uvit import UViT
from unidiff_core.sampling.spec import TimestepSpec
from unidiff_core.testing import check_codec

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_codec_example_registers_trains_and_samples(tmp_path, monkeypatch):
    block = next(block for block in blocks("python") if "class SeriesCodec" in block)
    (tmp_path / "readers_codec.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("reader")
    importlib.import_module("readers_codec").unidiff_register(registry)
    codec = registry.find("SeriesCodec")()
    model = UniDiffuser({"series": Modality(codec)}, partial(UViT, width=16, depth=3, heads=2))
    series = [[float(i + j) for j in range(32)] for i in range(4)]
    check_codec(codec, series)
    latents = model.encode({"series": series})
    assert model.decode(latents, ["series"])["series"] == series
    assert codec.from_bytes(codec.to_bytes(series[1])) == series[1]
    assert torch.tensor(model.sample("series", num=2, steps=2)["series"]).shape == (2, 32)


def test_commands_and_options_exist():
    used = re.findall(r"^unidiffuser (\S+)", "\n".join(blocks("sh")), flags=re.MULTILINE)
    assert used and set(used) <= set(COMMANDS)
    for config in re.findall(r"recipes/\S+\.yaml", README):
        assert (ROOT / config).is_file(), config
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def commands_of_the_pages():
    """Page, and the words of each command line that stands in a block of shell on it."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md"))]
    for page in pages:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "unidiffuser" in words:
                    yield page.name, words[words.index("unidiffuser") + 1 :]


@functools.cache
def parser_of(command):
    return importlib.import_module(f"unidiff_core.cli.{COMMANDS[command][0]}")._parser()


def parse(command, words):
    if command.startswith("fit"):
        if len(words) > 2:  # the recipes alone are parsed by test_recipe.py
            with pytest.raises(SystemExit) as end:
                fit.run([command, *words, "--print_config"])
            assert end.value.code == 0
    elif command in ("encode", "shards", "evaluate"):
        parser_of(command).parse_args(_with_sweeps(words))
    elif command in ("sample", "vary", "chain", "inpaint", "interpolate"):
        parser_of(command).parse_args(tidied(parser_of(command), words))


def test_every_command_line_of_the_pages_parses(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    seen = set()
    for page, (command, *words) in commands_of_the_pages():
        configs = [words[i + 1] for i in range(len(words)) if words[i] == "-c"]
        absent = [path for path in configs if not Path(path).is_file()]
        assert not [path for path in absent if path.startswith("recipes/")], (page, command, words)
        if absent:  # a file that the page has its reader write
            continue
        seen.add(command)
        try:
            parse(command, words)
        except Exception as error:
            raise AssertionError(f"{page}: unidiffuser {command} {' '.join(words)}") from error
    assert seen >= {"fit", "fit-codec", "encode", "shards", "evaluate", "sample", "vary", "chain", "inpaint"}


def test_specs_of_the_table_parse():
    rows = re.findall(r"^\| `(.+?)` \| ", README, flags=re.MULTILINE)
    assert len(rows) >= 8
    for row in rows:
        spec = row.replace("\\|", "|")
        mapping = json.loads(re.sub(r"(\w+):", r'"\1":', spec)) if spec.startswith("{") else spec
        TimestepSpec.parse(mapping, ["image", "text", "audio"])


def test_files_of_the_tree_exist():
    folder = ROOT
    for line in blocks("text")[0].splitlines():
        names = re.findall(r"[\w/.-]+(?:\.py|/)(?=\s|$)", line.split("   ")[0] if line.startswith("  ") else line)
        if not line.startswith("  "):
            folder = ROOT / line.split()[0]
            names = []
        assert folder.is_dir(), line
        for name in names:
            assert (folder / name).exists(), (folder, name)


def test_every_module_of_core_is_in_the_tree():
    tree = blocks("text")[0]
    modules = [path.name for path in (ROOT / "unidiff_core").glob("*.py") if path.name != "__init__.py"]
    assert not [name for name in modules if name not in tree]


def test_figures_are_those_of_the_committed_evaluation():
    evaluation = json.loads((ROOT / "docs/digits_evaluation.json").read_text())
    rows = re.findall(r"^\| `(.+?)` \| (\w+) \| ([\d.]+) \| ([\d.]+)–([\d.]+) \|", README, flags=re.MULTILINE)
    assert len(rows) >= 10
    for query, metric, value, low, high in rows:
        found = evaluation["queries"][query.replace("\\|", "|")][metric]
        for text, key in ((value, "value"), (low, "low"), (high, "high")):
            assert float(text) == pytest.approx(found[key], abs=6e-4), (query, metric, key)


def test_planning_page_shows_what_the_script_prints():
    command = [sys.executable, str(ROOT / "benchmarks/plan.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs/planning.md").read_text()
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) >= 8 and all(row in page for row in rows)
