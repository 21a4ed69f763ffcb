"""``unidiffuser verify``: whether files carry the mark that a codec puts into what it decodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiff_core.cli.option import PlainParser

if TYPE_CHECKING:
    from unidiff_core.codec.codec import Codec
    from unidiff_core.codec.mark import Mark

DESCRIPTION = """Say of each file whether it carries the mark that a codec puts, unseen, into what it decodes: how many
of its bits are found, and how probable it is that a file without it would be said to carry it.

  unidiffuser verify out/image/*.png
  unidiffuser verify found.jpg --key 0f1e2d3c && echo "one of ours"

The exit code is 0 if all of them carry it, 1 if any does not, 2 for an error. Models that `unidiffuser convert` makes
of released weights mark what they decode; of others, their codec's options say whether, and with which key.
"""


def run(argv: Sequence[str]) -> None:
    """Look for marks in the files that `argv` names."""
    parser = PlainParser("verify", DESCRIPTION)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="file to look into")
    parser.add_argument(
        "--key", help="which mark: as the codec's option says it; that of converted weights if not given"
    )
    options = parser.parse_args(list(argv))

    from unidiff_core.foundation.progress import progress

    codecs = marking()
    contents = [_content(path) for path in options.files]
    marks = []
    with progress("verify", len(contents), "files", transient=True) as show:
        for path, content in zip(options.files, contents, strict=True):
            marks.append(find(path, content, codecs, options.key))
            show(len(marks))
            what = "carries the mark" if marks[-1].is_there else "does not carry the mark"
            print(f"{path}: {what}, {marks[-1].matched} of {marks[-1].bits} bits", flush=True)
    for needed, bits, chance in sorted({(mark.needed, mark.bits, mark.false_positive) for mark in marks}):
        chance_of = f"which a file without it has with a probability of {chance:.1e} at most"
        print(f"the mark is {needed} of {bits} bits or more, {chance_of}")
    if not all(mark.is_there for mark in marks):
        sys.exit(1)


def marking() -> dict[str, type[Codec]]:
    """Name → registered codec that can mark what it decodes.

    Raises:
        ValueError: if there is none.
    """
    from unidiff_core.codec.codec import Codec
    from unidiff_core.foundation.plugin import load_plugins

    registry = load_plugins()
    rows: dict[str, Any] = {name: row.cls for name, row in sorted(registry.of_kind(Codec).items())}  # type: ignore[type-abstract]
    if found := {name: cls for name, cls in rows.items() if cls.marks}:
        return found
    nothing = "no registered codec marks what it decodes; `unidiffuser list codecs` lists them."
    raise ValueError(" ".join([nothing, *registry.failures]))


def find(path: Path, content: bytes, codecs: dict[str, type[Codec]], key: str | None) -> Mark:
    """The mark in a file, by the first codec that finds one, or that can read the file.

    Raises:
        ValueError: if none can; says what each said.
    """
    found, said = [], []
    for name, cls in codecs.items():
        try:
            found.append(cls.find_mark(content, key))
        except ValueError as error:
            said.append(f"{name}: {error}" if len(codecs) > 1 else str(error))
    if not found:
        raise ValueError(f"{path}: {'; '.join(said)}")
    return next((mark for mark in found if mark.is_there), found[0])


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is a folder; name its files, {path}/*" if path.is_dir() else f"no such file: {path}")
    return path.read_bytes()
