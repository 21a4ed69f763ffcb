"""``unidiffuser export``: a model directory → a layout that others defined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiff_core.cli.option import MODEL, PlainParser

if TYPE_CHECKING:
    from unidiff_core.foundation.registry import Registry

DESCRIPTION = """Write a model in a layout that others defined, whole or not at all.
`unidiffuser convert` reads it back, bit for bit.

  unidiffuser export runs/unidiffuser-v1 exported/ --allow_hub

layouts:
"""


def run(argv: Sequence[str]) -> None:
    """Export the model directory that `argv` names."""
    from unidiff_core.foundation.plugin import load_plugins

    registry = load_plugins()
    writers = _writers(registry)
    options = _parser(writers).parse_args(list(argv))
    name = options.layout or (next(iter(writers)) if len(writers) == 1 else None)
    if name is None:
        raise ValueError(f"say with --layout in which layout: {', '.join(writers) or 'none is registered'}")
    if name not in writers:
        raise ValueError(f"unknown layout {name!r}; known: {', '.join(writers) or 'none'}")

    from unidiff_core.cli.convert import show
    from unidiff_core.serialization.converter import export_model
    from unidiff_core.serialization.model_directory import load

    model = load(options.model, weights=options.weights, allow_hub=options.allow_hub)
    report = export_model(writers[name](), model, options.out, overwrite=options.overwrite)
    show(report, options.out)


def _writers(registry: Registry) -> dict[str, Any]:
    """Name → registered converter, of those that write."""
    from unidiff_core.serialization.converter import Converter

    rows: dict[str, Any] = {name: row.cls for name, row in sorted(registry.of_kind(Converter).items())}
    return {name: cls for name, cls in rows.items() if cls.writes()}


def _parser(writers: dict[str, Any]) -> PlainParser:
    layouts = "\n".join(
        f"  {name}: {cls.layout}\n    not exported: {cls.not_exported or 'nothing is left out'}"
        for name, cls in writers.items()
    )
    parser = PlainParser("export", DESCRIPTION + (layouts or "  none is registered"))
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--layout", help="name of the layout; the only one if not given")
    parser.add_argument("--weights", choices=["ema", "model"], default="ema", help="averaged weights, or the last ones")
    parser.add_argument("--allow_hub", action="store_true", help="let codecs fetch weights by hub id")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is in this layout")
    return parser
