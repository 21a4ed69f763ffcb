"""``unidiffuser codecs``: what is registered."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from unidiff_core.cli.option import PlainParser

if TYPE_CHECKING:
    from unidiff_core.foundation.registry import Registry


def run(argv: Sequence[str]) -> None:
    """Print a table of the registered codecs."""
    parser = PlainParser(
        prog="unidiffuser codecs",
        description="Lists the registered codecs by short name, with the distribution of each, its streams at "
        "default size, and the licence of its default weights. "
        "UNIDIFF_DISABLED_PLUGINS=name,name switches plugins off.",
    )
    parser.parse_args(argv)
    from unidiff_core.codec.codec import Codec
    from unidiff_core.foundation.plugin import load_plugins
    from unidiff_core.foundation.registry import PluginError

    registry = load_plugins()
    names = [Column(name, no_wrap=True) for name in ("codec", "distribution", "streams")]
    table = Table(*names, *(Column(name, overflow="fold") for name in ("licence", "sources")))
    failures = list(registry.failures)
    for name, row in sorted(registry.of_kind(Codec).items()):
        cls: Any = row.cls
        try:
            streams = _streams(name, registry)
        except Exception as error:  # whatever a stranger's constructor or `streams` raises
            streams = "see below"
            failures.append(
                str(error) if isinstance(error, PluginError) else f"{name} of {row.distribution}: {error!r}"
            )
        table.add_row(name, row.distribution, streams, str(cls.licence), "\n".join(map(str, cls.sources)))
    console = Console()
    console.print(table)
    for failure in failures:
        console.print(failure, style="red", markup=False, highlight=False, soft_wrap=True)


def _streams(name: str, registry: Registry) -> str:
    parameters = inspect.signature(registry.find(name)).parameters.values()
    if any(row.default is row.empty and row.kind not in (row.VAR_POSITIONAL, row.VAR_KEYWORD) for row in parameters):
        return "depends on its arguments"
    return "\n".join(f"{stream} {row}" for stream, row in registry.make(name).streams.items())
