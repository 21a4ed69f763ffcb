"""``unidiffuser convert``: weights in a layout that others defined → a model directory."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiff_core.cli.option import Output

if TYPE_CHECKING:
    from unidiff_core.foundation.registry import Registry
    from unidiff_core.serialization.converter import Converter, Report

USAGE = "unidiffuser convert SOURCE OUT [options]"
DESCRIPTION = f"""usage: {USAGE}

Convert a folder of weights in another layout to a model directory, which is written whole or not at all. The layout is
recognised by the names of the files; where they are of several, `--layout` says which. Every key is checked; what is
left out is said. `unidiffuser export` goes back.

  unidiffuser convert downloads/ runs/unidiffuser-v1 --tokenizer downloads/gpt2
  unidiffuser sample runs/unidiffuser-v1 "image | text" --given text="an owl" --guidance 7 --allow_hub

layouts:
"""
HINT = "\nThe options depend on the layout: `unidiffuser convert SOURCE --help` lists those for SOURCE.\n"


def run(argv: Sequence[str]) -> None:
    """Convert the folder that `argv` names."""
    from unidiff_core.foundation.plugin import load_plugins

    registry = load_plugins()
    if argv and argv[0] in ("-h", "--help"):
        print(DESCRIPTION + _layouts(registry) + HINT, end="")
        return
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"name the folder to convert first: {USAGE}. `unidiffuser convert --help` lists the layouts.")

    from unidiff_core.serialization.converter import find_converter, import_model

    source = Path(argv[0]).expanduser()
    options, converter = _parse(find_converter(source, registry, _layout(argv)), argv)
    report = import_model(converter, source, Path(options.out), overwrite=options.overwrite)
    show(report, options.out)


def show(report: Report, out: str | Path) -> None:
    """Print what was written, what was not, and whose the weights are."""
    console = Output(highlight=False, soft_wrap=True, markup=False)
    for line in report.lines:
        console.print(f"  {line}")
    console.print(f"{out}: {report.terms}" if report.terms else str(out))


def _layouts(registry: Registry) -> str:
    """The registered converters, each with its layout and its distribution."""
    from unidiff_core.serialization.converter import Converter

    known: list[tuple[str, str, Any]] = [
        (name, row.distribution, row.cls) for name, row in sorted(registry.of_kind(Converter).items())
    ]
    rows = [f"  {name} ({origin}): {_summary(cls)}\n    {cls.layout}\n" for name, origin, cls in known]
    return "".join(rows or ["  none is registered\n"]) + "".join(f"  {failure}\n" for failure in registry.failures)


def _summary(cls: type) -> str:
    return (getdoc(cls) or "").partition("\n")[0]


def _layout(argv: Sequence[str]) -> str | None:
    """What ``--layout`` says: it is needed first, because the other options depend on it."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--layout", nargs="?")
    layout: str | None = parser.parse_known_args(list(argv))[0].layout
    return layout


def _parse(cls: type[Converter], argv: Sequence[str]) -> tuple[Any, Converter]:
    """The command's options, and the converter made from its own."""
    from unidiff_core.cli.option import PARSER_OPTIONS, Parser

    text = f"{_summary(cls)}\n\nSOURCE: {cls.layout}"
    parser = Parser(**PARSER_OPTIONS | {"prog": "unidiffuser convert", "usage": USAGE, "description": text})
    parser.add_argument("source", type=str, metavar="SOURCE", help="Folder to convert.")
    parser.add_argument("out", type=str, metavar="OUT", help="Model directory to write.")
    parser.add_argument("--layout", type=str, help="Layout of SOURCE, where it holds files of several.")
    parser.add_argument("--overwrite", action="store_true", help="Replace OUT if it is a model directory.")
    names = parser.add_class_arguments(cls, fail_untyped=False)
    options = parser.parse_args(list(argv))
    return options, cls(**{name: options[name] for name in names})
