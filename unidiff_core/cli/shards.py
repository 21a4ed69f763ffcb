"""`unidiffuser shards`: write a source's samples as webdataset shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiff_core.cli.option import CONFIG, Parser, named, shown
from unidiff_core.data.shard import MANIFEST, endings_if_own, write_shards
from unidiff_core.foundation.argument import check_sizes
from unidiff_core.foundation.difference import differences, told
from unidiff_core.foundation.error import counted

if TYPE_CHECKING:
    from unidiff_core.data.source import Source

DESCRIPTION = """Write a source's samples as webdataset shards, a folder for each split.

A split that is complete is left alone; one that was interrupted, or whose source has changed, is written again.
One that was written with other settings stays: the command stops and says which they are.

example:
  unidiffuser shards -c recipes/digits/shards.yaml --source.renderings_train=4
"""
SOURCE = "source.json"


def run(argv: Sequence[str]) -> None:
    """Write the shards that `argv` configures.

    Raises:
        ValueError: if a source cannot give what it is asked for, or a split was written with other settings; says why.
    """
    parser = _parser()
    config = parser.parse_args(list(argv))
    recipe = json.loads(json.dumps(config.source.as_dict()))
    built = parser.instantiate_classes(config)
    recipe |= {"files": _digest(built.source.files), "shard_size": built.shard_size}
    if not built.overwrite and (done := _complete(Path(built.output).expanduser(), recipe)):
        for folder in done:  # without asking the source, which may look into all of its files
            _check(folder, built.source)
            _tell_complete(folder)
        return
    folders = {split: Path(built.output).expanduser() / split for split in built.source.splits}
    check_sizes(shard_size=built.shard_size)
    if not folders:
        raise ValueError("the source has no samples")
    for folder in folders.values():  # all before the first is written
        _check(folder, built.source)
        if (folder / MANIFEST).is_file() and not built.overwrite:
            _check_settings(folder, recipe)
    recipe["splits"] = dict(built.source.splits)
    for split, folder in folders.items():
        _write_split(built.source, split, folder, recipe, built.shard_size, built.overwrite)


def _parser() -> Parser:
    from unidiff_core.data.source import Source
    from unidiff_core.foundation.plugin import load_plugins

    load_plugins()
    parser = Parser(**named("shards", DESCRIPTION))
    parser.add_argument("-c", "--config", action="config", help=CONFIG)
    parser.add_argument("--source", type=Source, required=True, help="Where the samples come from.")
    parser.add_argument("--output", type=str, required=True, help="Folder; each split becomes a folder in it.")
    parser.add_argument("--shard_size", type=int, default=1000, help="Samples in a shard.")
    parser.add_argument("--overwrite", action="store_true", help="Write again what is complete.")
    return parser


def _write_split(
    source: Source, split: str, folder: Path, recipe: dict[str, Any], shard_size: int, overwrite: bool
) -> None:
    from unidiff_core.foundation.progress import tracked

    total = source.splits[split]
    if (folder / MANIFEST).is_file() and not overwrite:
        if not _has_changed(folder, recipe, total):
            _tell_complete(folder)
            return
        print(f"{folder}: was complete, but its source has changed since; written again")
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOURCE).write_text(json.dumps(recipe, indent=1) + "\n")
    paths = write_shards(folder, tracked(source.samples(split), f"{split} shards", total), shard_size=shard_size)
    print(f"{folder}: {counted(_count(folder), 'sample')} in {counted(len(paths), 'shard')}")
    if (written := _count(folder)) != total:
        raise ValueError(f"{folder}: the source said {total} samples and gave {written}; it changed meanwhile")


def _digest(files: Sequence[Path]) -> str:
    """Of names, sizes and times of change: another one if a file came, went or changed."""
    rows = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _count(folder: Path) -> int:
    """Samples in a complete folder."""
    return sum(row["count"] for row in json.loads((folder / MANIFEST).read_text())["shards"])


def _complete(output: Path, recipe: dict[str, Any]) -> list[Path]:
    """The folders of all splits, if each is complete and of this recipe and these files; none otherwise."""
    for path in output.glob(f"*/{SOURCE}"):
        written = _written(path.parent)
        folders = {output / split: num for split, num in written.get("splits", {}).items()}
        is_same = written.get("files") == recipe["files"] and not _other(written, recipe)
        if is_same and all((folder / MANIFEST).is_file() and _count(folder) == num for folder, num in folders.items()):
            return list(folders)
    return []


def _written(folder: Path) -> dict[str, Any]:
    """What a split says of the recipe that wrote it.

    Raises:
        ValueError: if the file of that name is another program's.
    """
    try:
        written: Any = json.loads((folder / SOURCE).read_text())
    except ValueError:
        written = None
    if not isinstance(written, dict) or "class_path" not in written:
        raise ValueError(
            f"{folder} holds what `unidiffuser shards` did not write, {folder / SOURCE}; give another --output"
        )
    return written


def _tell_complete(folder: Path) -> None:
    print(f"{folder}: complete, left alone; --overwrite writes it again")


def _has_changed(folder: Path, recipe: dict[str, Any], total: int) -> bool:
    """Whether a complete split is of other samples than its source has now."""
    written = _written(folder)
    return _count(folder) != total or written.get("files", recipe["files"]) != recipe["files"]


def _check_settings(folder: Path, recipe: dict[str, Any]) -> None:
    """Refuse to take a complete split for that of other settings.

    Raises:
        ValueError: if it was written with others; says which.
    """
    if found := _other(_written(folder), recipe):
        raise ValueError(
            f"{folder} is complete, but of other settings: {told(found)}. Give another --output to keep it, or "
            "--overwrite to write it again"
        )


def _other(written: dict[str, Any], recipe: dict[str, Any]) -> dict[str, str]:
    """Which settings were others. A folder that does not say its `shard_size` is older than that record."""

    def settings(row: dict[str, Any]) -> dict[str, Any]:
        source = {name: row.get(name) for name in ("class_path", "init_args")}
        return {"source": source, "shard_size": row.get("shard_size", recipe["shard_size"])}

    return differences(settings(written), settings(recipe))


def _check(folder: Path, source: Source) -> None:
    """Refuse a target that holds what it would destroy.

    Raises:
        ValueError: if it holds a file of the source, or shards that are not ours; names them.
    """
    target = folder.resolve()
    if inside := next((path for path in source.files if target in path.resolve().parents), None):
        raise ValueError(f"{folder} holds {inside}, which the source reads; give another --output")
    tars = _shards(folder)
    foreign = [path for path in tars if endings_if_own(path) is None]
    if not (folder / SOURCE).is_file():
        foreign = tars or [path for path in [folder / MANIFEST] if path.exists()]
    if foreign:
        raise ValueError(
            f"{folder} holds what `unidiffuser shards` did not write, {shown(foreign)}; give another --output"
        )


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, as `_check` saw; the manifest first, so that it never looks complete."""
    earlier = [path for path in [folder / MANIFEST, *_shards(folder)] if path.exists()]
    if earlier:
        print(f"{folder}: removing what was written before, {shown([path.name for path in earlier])}")
    for path in earlier:
        path.unlink()
