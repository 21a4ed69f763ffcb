"""Every option that a message, a help text or a page names is one that a command takes."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from unidiff_core.cli.main import COMMANDS, help_text, main
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.serialization.converter import Converter

ROOT = Path(__file__).parents[3]
PACKAGES = ("unidiff_core", "codecs/unidiff_codecs", "plugins/unidiff-audio/unidiff_audio")
STYLE = re.compile(r"var\(--[\w-]+\)")
"""A colour of a page, in CSS."""
NAMED = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
LISTED = re.compile(r"^ +(?:-\w,? ?(?:\w+, )?)?(--[\w.-]+)", re.MULTILINE)
OTHERS = {
    **dict.fromkeys(
        ("--array", "--nodes", "--nproc_per_node", "--no-python", "--gpus", "--wrap"), "sbatch and torchrun"
    ),
    **dict.fromkeys(("--sort", "--editable", "--no-deps", "--no-build-isolation"), "tar and pip"),
}
"""Options of other programs."""


@pytest.fixture(scope="module")
def known():
    """The options that the commands' own help lists."""
    from contextlib import redirect_stdout, suppress
    from io import StringIO

    found = {"--version", "--traceback", "--help", "--overwrite"}
    for command in COMMANDS:
        shown = StringIO()
        with redirect_stdout(shown), suppress(SystemExit):
            main([command, "--help"])
        found |= {match[1] for match in LISTED.finditer(shown.getvalue())}
    found |= {option.partition(".")[0] for option in found}
    for row in load_plugins().of_kind(Converter).values():
        found |= {f"--{name}" for name in inspect.signature(row.cls).parameters}
    return found


def is_known(option, known):
    """An option of a command, or one of what a class that an option chooses takes."""
    return option in known or option in OTHERS or ("." in option and option.partition(".")[0] in known)


def texts_of(path):
    """The strings of a module, those in f-strings too."""
    tree = ast.parse(path.read_text())
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_the_help_is_read(known):
    assert {"--spec", "--allow_hub", "--folders", "--out", "--layout", "--tokenizer", "--output"} <= known
    assert "--allow-hub" not in known and any(option.startswith("--trainer") for option in known)
    assert not is_known("--allow-hub", known)


@pytest.mark.parametrize("package", PACKAGES)
def test_options_that_messages_name(known, package):
    files = [path for path in (ROOT / package).rglob("*.py") if "template" not in path.parts]
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}: {option}"
        for path in files
        for text in texts_of(path)
        for option in NAMED.findall(STYLE.sub("", text))
        if not is_known(option, known)
    ]
    assert not wrong and not [option for option in NAMED.findall(help_text()) if not is_known(option, known)]


def test_options_that_recipes_name(known):
    files = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "recipes").rglob("*.sh")]
    texts = {path: " ".join(line for line in path.read_text().splitlines() if "unidiffuser" in line) for path in files}
    wrong = [(path.name, found) for path, text in texts.items() for found in NAMED.findall(text)]
    assert not [row for row in wrong if not is_known(row[1], known)]
