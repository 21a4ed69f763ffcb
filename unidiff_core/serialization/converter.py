"""Converters: weights in a layout that others defined, into a model directory and back."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from unidiff_core.foundation.atomic import open_to_all, publish
from unidiff_core.foundation.registry import Registry
from unidiff_core.serialization.description import Pretrained
from unidiff_core.serialization.model_directory import is_model_directory, save


@dataclass
class Report:
    """What a person is told of a conversion: everything that was left out, replaced or assumed."""

    lines: list[str] = field(default_factory=list)
    terms: str = ""
    """The weights' licence and where they came from, in a line; empty if nobody said."""

    def add(self, line: str) -> None:
        """Add a sentence."""
        self.lines.append(line)


class Converter(ABC):
    """Reads models from a layout of files, and writes models into it. Its constructor's parameters are its options.

    Loading is never silent and never unsafe: keys that are missing, not known or of another shape are an error that
    names them, whatever else is left out goes into the report, and no pickle is opened without ``weights_only=True``.
    """

    layout: ClassVar[str]
    """What a folder in this layout holds, in a line."""
    not_exported: ClassVar[str] = ""
    """What `write` leaves out, in a line."""

    @staticmethod
    @abstractmethod
    def recognises(source: Path) -> bool:
        """Whether a folder looks like one in this layout. Opens no weights."""

    @abstractmethod
    def read(self, source: Path, folder: Path, report: Report) -> Pretrained:
        """The model in `source`.

        Args:
            source: a folder in this layout.
            folder: where the codecs' networks are to be written, for the model's codecs to refer to; it exists.
            report: what the person is told.

        Raises:
            ValueError: if the files do not hold such a model; names every key at fault.
        """

    def write(self, model: Pretrained, folder: Path, report: Report) -> None:
        """Write a model into an existing, empty folder.

        Raises:
            ValueError: if the layout cannot hold this model, or if this converter only reads.
        """
        raise ValueError(f"{type(self).__name__} only reads its layout; it cannot write {folder}")

    @classmethod
    def writes(cls) -> bool:
        """Whether `write` is there."""
        return cls.write is not Converter.write


def find_converter(source: Path, registry: Registry, layout: str | None = None) -> type[Converter]:
    """The registered converter that recognises a folder, or the one that was named.

    Args:
        source: the folder.
        registry: of the converters.
        layout: a converter's name; needed where the folder holds files of several layouts.

    Raises:
        ValueError: if no such converter is registered, none recognises the folder, or several do; lists what is known.
    """
    if not source.is_dir():
        raise ValueError(f"no such folder: {source}")
    known: dict[str, Any] = {name: row.cls for name, row in sorted(registry.of_kind(Converter).items())}
    if layout is not None and layout not in known:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(known) or 'none'}")
    found = [name for name, cls in known.items() if cls.recognises(source)] if layout is None else [layout]
    if len(found) == 1:
        cls: type[Converter] = known[found[0]]
        return cls
    if found:
        raise ValueError(f"{source} could be of several layouts: {', '.join(found)}; say which with --layout")
    layouts = "; ".join(f"{name}: {cls.layout}" for name, cls in known.items()) or "none"
    hints = "".join(f" {failure}" for failure in registry.failures)
    raise ValueError(f"{source} is of no known layout. Known layouts: {layouts}.{hints}")


def import_model(converter: Converter, source: Path, out: Path, *, overwrite: bool = False) -> Report:
    """Foreign layout → model directory, which appears whole or not at all.

    Raises:
        ValueError: if the source does not hold such a model, or if `out` is taken.
    """
    report = Report()
    with new_folder(out, overwrite=overwrite, is_ours=is_model_directory) as folder:
        model = converter.read(source, folder, report)
        report.terms = model.description.terms
        save(folder, model.description, model.state)
    return report


def export_model(converter: Converter, model: Pretrained, out: Path, *, overwrite: bool = False) -> Report:
    """Model → foreign layout; the folder appears whole or not at all.

    Raises:
        ValueError: if the layout cannot hold this model, or if `out` is taken.
    """
    report = Report(terms=model.description.terms)
    with new_folder(out, overwrite=overwrite, is_ours=converter.recognises) as folder:
        converter.write(model, folder, report)
    return report


@contextmanager
def new_folder(out: Path, *, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder to write into, which takes the name `out` when all is written and vanishes on an error.

    Args:
        out: the name.
        overwrite: whether it may replace a folder.
        is_ours: whether that folder is of the kind that may be replaced; anything else is never deleted.

    Raises:
        ValueError: if `out` is there and may not be replaced.
    """
    if out.exists() and not (out.is_dir() and is_ours(out)):
        raise ValueError(
            f"{out} is already there and not what this command writes, so it is not replaced; give another folder"
        )
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is already there; give another folder, or --overwrite to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield partial
        open_to_all(partial)
        publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
