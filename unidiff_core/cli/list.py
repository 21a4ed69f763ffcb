"""``unidiffuser list [KIND|NAME]``: what is registered, by kind, a block for each entry."""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser

from unidiff_core.cli.option import PlainParser
from unidiff_core.foundation.error import meant

if TYPE_CHECKING:
    from unidiff_core.foundation.registry import Registration, Registry

WIDTH = 80
KINDS = {
    "codecs": ("unidiff_core.codec.codec", "Codec"),
    "sources": ("unidiff_core.data.source", "Source"),
    "samples": ("unidiff_core.data.samples", "Samples"),
    "cleaners": ("unidiff_core.data.cleaner", "Cleaner"),
    "processes": ("unidiff_core.process.process", "ForwardProcess"),
    "schedules": ("unidiff_core.process.gaussian.schedule", "NoiseSchedule"),
    "degradations": ("unidiff_core.process.cold.degradation", "Degradation"),
    "solvers": ("unidiff_core.process.process", "Solver"),
    "laws": ("unidiff_core.training.law", "TimestepLaw"),
    "backbones": ("unidiff_core.network.backbone", "Backbone"),
    "trainings": ("unidiff_core.codec.training", "CodecTraining"),
    "metrics": ("unidiff_core.evaluation.metric", "Metric"),
    "features": ("unidiff_core.evaluation.features", "Features"),
    "judges": ("unidiff_core.evaluation.judge", "Judge"),
    "converters": ("unidiff_core.serialization.converter", "Converter"),
    "others": ("builtins", "object"),
}
"""Kind → the class that everything of it subclasses; what is of none of them is among the others."""
DESCRIPTION = f"""List what is registered: the short names that recipes, model directories and options use.

Each entry says which distribution it is from, what it is, and what it takes. Give the name of one, or of a kind:
{textwrap.fill(", ".join(KINDS), WIDTH)}; all if it is left out.

  unidiffuser list codecs
  unidiffuser list Gaussian
  unidiffuser list solvers --json

UNIDIFF_DISABLED_PLUGINS=name,name switches plugins off.
"""


@dataclass(frozen=True)
class Entry:
    """One registered class, for a person or a program."""

    name: str
    kind: str
    distribution: str
    summary: str
    options: dict[str, str]
    """Name → its default, empty if it has to be given."""
    explained: dict[str, str]
    """Name → what its option is, as its docstring says."""
    details: dict[str, str | list[str]]
    """What its kind says besides: a codec's streams, licence and sources, a process's solvers, a converter's layout."""


def run(argv: Sequence[str]) -> None:
    """Print what is registered."""
    parser = PlainParser("list", DESCRIPTION)
    parser.add_argument("what", nargs="?", metavar="KIND|NAME", help="of what; everything if left out")
    parser.add_argument("--json", action="store_true", help="for programs: a list of objects")
    options = parser.parse_args(list(argv))
    from unidiff_core.foundation.plugin import load_plugins

    registry = load_plugins()
    entries = [row for row in entries_of(registry) if options.what in (None, row.kind, row.name)]
    if not entries:
        known = [*KINDS, *registry.registrations]
        guess = meant(options.what, known, most=3) or f"; the kinds are {', '.join(KINDS)}."
        raise ValueError(
            " ".join(
                [f"{options.what!r} is no kind, and nothing of that name is registered{guess}", *registry.failures]
            )
        )
    if options.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1, ensure_ascii=False))
    else:
        alone = options.what is not None and options.what not in KINDS
        print("\n\n".join(shown(entries, headed=options.what is None, explained=alone)))
    for failure in registry.failures:
        print(f"unidiffuser: {failure}", file=sys.stderr)


def entries_of(registry: Registry) -> Iterator[Entry]:
    """Every registration, by kind and name."""
    left = dict(registry.registrations)
    for kind, (module, cls) in KINDS.items():
        base = getattr(__import__(module, fromlist=[cls]), cls)
        for name in sorted(name for name, row in left.items() if issubclass(row.cls, base)):
            yield _entry(name, kind, left.pop(name), registry)


def shown(entries: Sequence[Entry], *, headed: bool, explained: bool = False) -> Iterator[str]:
    """A block of text for each entry, within `WIDTH` columns.

    Args:
        entries: what to show.
        headed: whether the name of each kind stands before it.
        explained: whether to say of each option what it is.
    """
    last = None
    for entry in entries:
        head = f"{entry.kind.upper()}\n\n" if headed and entry.kind != last else ""
        last = entry.kind
        yield head + "\n".join(_lines(entry, explained))


def _lines(entry: Entry, explained: bool) -> Iterator[str]:
    yield f"{entry.name}  ({entry.distribution})"
    yield from textwrap.wrap(entry.summary, WIDTH, initial_indent="  ", subsequent_indent="  ")
    takes = ", ".join(f"{name}={default}" if default else name for name, default in entry.options.items())
    yield from _wrapped(f"takes: {takes or 'nothing'}", "  ")
    if explained:
        for name, text in entry.explained.items():
            yield from _wrapped(f"{name}: {text}", "    ")
    for name, value in entry.details.items():
        for text in value if isinstance(value, list) else [value]:
            yield from _wrapped(f"{name}: {text}", "  ")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def _entry(name: str, kind: str, row: Registration, registry: Registry) -> Entry:
    doc = inspect.getdoc(row.cls) or ""
    rows = docstring_parser.parse(doc, docstring_parser.DocstringStyle.GOOGLE).params
    told = {param.arg_name: " ".join((param.description or "").split()) for param in rows}
    parameters = [p for p in inspect.signature(row.cls).parameters.values() if p.name != "ports"]
    options = {
        p.name: "" if p.default is p.empty else _short(p.default)
        for p in parameters
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    details = _codec(name, row.cls, registry) if kind == "codecs" else {}
    details |= _choices(row.cls)
    details |= _steps(row.cls, registry)
    details |= {"layout": row.cls.layout} if kind == "converters" else {}  # type: ignore[attr-defined]
    summary = " ".join(doc.partition("\n\n")[0].split())
    explained = {name: told[name] for name in options if name in told}
    return Entry(name, kind, row.distribution, summary, options, explained, details)


def processes(registry: Registry) -> str:
    """The registered forward processes and what each takes, a few lines each, for the help of a command."""
    from unidiff_core.process.process import ForwardProcess

    rows = sorted(registry.of_kind(ForwardProcess).items())  # type: ignore[type-abstract]
    return "\n".join(line for name, row in rows for line in _briefly(_entry(name, "processes", row, registry)))


def _briefly(entry: Entry) -> Iterator[str]:
    """What it is in a line, and what it takes, with the words of an option that has few."""
    summary = entry.summary.replace("``", "")
    yield textwrap.shorten(f"{entry.name}: {summary}", WIDTH, placeholder=" …", break_on_hyphens=False)
    choices = {name: words for name, words in entry.details.items() if name in entry.options}
    takes = [
        f"{name}={value}" + (f" ({choices[name]})" if name in choices else "") for name, value in entry.options.items()
    ]
    yield from _wrapped(f"takes: {', '.join(takes) or 'nothing'}", "  ")


def _steps(cls: Any, registry: Registry) -> dict[str, str | list[str]]:
    """Of a solver the processes that take it, of a process its solvers."""
    from unidiff_core.process.process import ForwardProcess, Solver

    processes: dict[str, Any] = {name: row.cls for name, row in registry.of_kind(ForwardProcess).items()}  # type: ignore[type-abstract]
    if issubclass(cls, Solver):
        takers = [name for name, process in processes.items() if process.solvers and issubclass(cls, process.solvers)]
        return {"solver of": ", ".join(sorted(takers)) or "no registered process"}
    if issubclass(cls, ForwardProcess):
        return {"solvers": ", ".join(sorted(registry.of_kind(cls.solvers))) if cls.solvers else "one way to step"}
    return {}


def _choices(cls: type) -> dict[str, str | list[str]]:
    """Of each option that takes one of a few words: which."""
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    except Exception:  # a stranger's annotations
        return {}
    return {name: " or ".join(map(str, get_args(hint))) for name, hint in hints.items() if get_origin(hint) is Literal}


def _short(default: Any) -> str:
    return default if isinstance(default, str) and default else repr(default)


def _codec(name: str, cls: Any, registry: Registry) -> dict[str, str | list[str]]:
    """Streams at default size, licence, sources."""
    try:
        streams = [f"{stream} {row}" for stream, row in registry.make(name).streams.items()]
    except Exception as error:  # whatever a stranger's constructor or `streams` raises
        needed = any(p.default is p.empty for p in inspect.signature(cls).parameters.values())
        streams = ["depend on its arguments" if needed else f"fail: {error}"]
    return {"streams": "; ".join(streams), "licence": str(cls.licence), "sources": [str(row) for row in cls.sources]}
