"""The model card: README.md of a model directory, which is what the Hugging Face hub shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from unidiff_core.foundation.atomic import write_text
from unidiff_core.serialization.description import Description

CARD, SAMPLES = "README.md", "samples_of_card"
MARK = "<!-- written by unidiffuser; without this line the page is yours, and nothing writes over it -->"
"""The last line of a card that may be written again."""


@dataclass(frozen=True)
class Measured:
    """What an evaluation says of a model, as text.

    Attributes:
        head: of the table.
        rows: of the table.
        verdict: how many criteria are met.
        samples: query → a line of Markdown for each of some samples, not picked.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdict: str = ""
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)


def write_card(
    folder: Path,
    description: Description,
    measured: Measured | None = None,
    *,
    name: str | None = None,
    datasets: Sequence[str] = (),
) -> bool:
    """Write the card of a model directory, unless its README.md is somebody else's.

    Args:
        folder: the model directory.
        description: of the model.
        measured: of these weights, if they were evaluated.
        name: of the model, for whoever loads it: ``user/name`` on the hub; the folder's if not given.
        datasets: hub ids of what it was trained on.

    Returns:
        Whether it was written.
    """
    path = folder / CARD
    if path.exists() and not path.read_text(encoding="utf-8").rstrip().endswith(MARK):
        return False
    write_text(path, card(description, name or folder.resolve().name, measured, datasets))
    return True


def card(description: Description, name: str, measured: Measured | None = None, datasets: Sequence[str] = ()) -> str:
    """The text of a card."""
    parts = [f"---\n{front(description, datasets)}\n---", _what(description, name)]
    if measured:
        parts += [_samples(measured), _table(measured)]
    return "\n\n".join([*filter(None, parts), MARK]) + "\n"


def front(description: Description, datasets: Sequence[str] = ()) -> str:
    """What the hub sorts models by."""
    rows = {
        "license": description.licence,
        "library_name": "unidiff",
        "tags": ["unidiff", "diffusion", "multimodal", *description.modalities],
        "datasets": list(datasets),
    }
    text: str = yaml.safe_dump({key: value for key, value in rows.items() if value}, sort_keys=False)
    return text.rstrip()


def _what(description: Description, name: str) -> str:
    names = list(description.modalities)
    parts = "\n".join(
        f"* `{key}`: {type(row.codec).__name__}, {type(row.process).__name__} process"
        for key, row in description.modalities.items()
    )
    given = f'"{names[0]} | {names[1]}", {{"{names[1]}": ...}}' if len(names) > 1 else f'"{names[0]}"'
    terms = f"\n\n{description.terms.capitalize()}." if description.terms else ""
    return f"""# {name}

One network for every marginal, conditional and joint distribution of {", ".join(names)}, by unidiff
(`pip install unidiff-core`), a UniDiffuser (arXiv 2303.06555) for any modalities.

{parts}

```python
from unidiff_core import UniDiffuser

model = UniDiffuser.from_pretrained("{name}", allow_hub=True)
samples = model.sample({given}, num=4)
```{terms}"""


def _samples(measured: Measured) -> str:
    rows = [f"### `{query}`\n\n" + "\n".join(lines) for query, lines in measured.samples.items()]
    return "\n\n".join(["## Samples, not picked", *rows]) if rows else ""


def _table(measured: Measured) -> str:
    lines = [measured.head, ["---"] * len(measured.head), *measured.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(filter(None, ["## Measured", measured.verdict, table]))
