"""`unidiffuser shards`: write a source's samples as webdataset shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from unidiff_core.data.source import Source

DESCRIPTION = """Write a source's samples as webdataset shards, a folder for each split.

A split that is complete is left alone; one that was interrupted is written again.

example:
  unidiffuser shards -c recipes/digits/shards.yaml --source.renderings_train=4
"""
SOURCE = "source.json"


def run(argv: Sequence[str]) -> None:
    """Write the shards that `argv` configures.

    Raises:
        ValueError: if a source cannot give what it is asked for; says why.
    """
    parser = _parser()
    config = parser.parse_args(list(argv))
    recipe = json.loads(json.dumps(config.source.as_dict()))
    built = parser.instantiate_classes(config)
    for split in built.source.splits:
        _write_split(built.source, split, Path(built.output) / split, recipe, built.shard_size, built.overwrite)


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    from unidiff_core.cli.option import named
    from unidiff_core.data.source import Source
    from unidiff_core.foundation.plugin import load_plugins

    load_plugins()
    parser = ArgumentParser(**named("shards", DESCRIPTION))
    parser.add_argument("-c", "--config", action="config", help="YAML file; later options override it.")
    parser.add_argument("--source", type=Source, required=True, help="Where the samples come from.")
    parser.add_argument("--output", type=str, required=True, help="Folder; each split becomes a folder in it.")
    parser.add_argument("--shard_size", type=int, default=1000, help="Samples in a shard.")
    parser.add_argument("--overwrite", action="store_true", help="Write again what is complete.")
    return parser


def _write_split(
    source: Source, split: str, folder: Path, recipe: dict[str, Any], shard_size: int, overwrite: bool
) -> None:
    from rich.progress import track

    from unidiff_core.data.shard import MANIFEST, write_shards

    total = source.splits[split]
    if (folder / MANIFEST).is_file() and not overwrite:
        _explain_skip(folder, recipe)
        return
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOURCE).write_text(json.dumps(recipe, indent=1) + "\n")
    paths = write_shards(folder, track(source.samples(split), f"{split} shards", total), shard_size=shard_size)
    print(f"{folder}: {total} samples in {len(paths)} shards")


def _explain_skip(folder: Path, recipe: dict[str, Any]) -> None:
    written = folder / SOURCE
    is_same = written.is_file() and json.loads(written.read_text()) == recipe
    reason = "complete, left alone; --overwrite writes it again"
    if not is_same:
        reason = "complete, but written with other settings; --overwrite redoes it"
    print(f"{folder}: {reason}")


def _clear(folder: Path) -> None:
    """Remove what an earlier run left; the manifest first, so that the folder never looks complete."""
    from unidiff_core.data.shard import MANIFEST

    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.glob("*.tar"):
        path.unlink()
