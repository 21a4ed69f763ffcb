"""The public names: each is importable from the top, and the type checker sees the same as the program."""

from __future__ import annotations

import ast
from pathlib import Path

import unidiff_core


def test_every_public_name_is_there_for_the_program_and_for_the_type_checker():
    found = {name: getattr(unidiff_core, name) for name in unidiff_core.__all__}
    assert None not in found.values()
    tree = ast.parse(Path(unidiff_core.__file__).read_text())
    block = next(row for row in tree.body if isinstance(row, ast.If))
    seen = {alias.name: row.module for row in block.body for alias in row.names}
    assert seen.keys() == found.keys()
    assert seen == {name: f"unidiff_core.{home}" for name, home in unidiff_core._HOME_OF.items()}
