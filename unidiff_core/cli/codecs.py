"""``unidiffuser codecs``: what is registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from unidiff_core.cli.option import PlainParser


def run(argv: Sequence[str]) -> None:
    """Print a table of the registered codecs."""
    parser = PlainParser(
        prog="unidiffuser codecs",
        description="Lists the registered codecs by short name, with the distribution of each, its streams at "
        "default size, and the licence of its default weights. "
        "UNIDIFF_DISABLED_PLUGINS=name,name switches plugins off.",
    )
    parser.parse_args(argv)
    from unidiff_core.codec import Codec
    from unidiff_core.plugin import load_plugins

    registry = load_plugins()
    table = Table("codec", "distribution", "streams", "licence", "sources")
    for name, row in sorted(registry.of_kind(Codec).items()):
        cls: Any = row.cls
        table.add_row(name, row.distribution, _streams(cls), cls.licence, "\n".join(cls.sources))
    console = Console()
    console.print(table)
    for failure in registry.failures:
        console.print(f"[red]{failure}[/red]", highlight=False)


def _streams(cls: type) -> str:
    try:
        return "\n".join(f"{name} {stream}" for name, stream in cls().streams.items())
    except TypeError:
        return "depends on its arguments"
