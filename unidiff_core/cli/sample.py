"""``unidiffuser sample``: any marginal, conditional or joint distribution by a timestep spec."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console

from unidiff_core.cli.option import PARSER_OPTIONS, DefaultsFormatter, add_options_of, check_device, cost, tidied
from unidiff_core.foundation.progress import progress

if TYPE_CHECKING:
    from unidiff_core.codec.codec import Raw
    from unidiff_core.sampling.loop import StepReport
    from unidiff_core.system import UniDiffuser

USAGE = "unidiffuser sample MODEL [SPEC] [--given NAME=VALUE] [options]"
DESCRIPTION = """Sample from a model directory what a timestep spec solves.

A spec in text names what to solve, and behind a bar what to hold; what it does not name is ignored:

  "image"                marginal                   "image, text"           joint
  "image | text"         image given text           "image | text@0.3"      given text noised to 0.3
  "image@0.6 | text"     a given image noised to 0.6 and solved again (SDEdit)

--spec takes the mapping form, for any path: '{text: [[0, 1], [0.5, 0]], image: [[0.5, 1], [1, 0]]}' solves text first,
then the image; [start, end] is a solved path, a number a held time, 0 is clean and 1 is noise.

  unidiffuser sample runs/digits "image | text" --given text="a red seven" --num 16 --guidance 2 --out out/
  unidiffuser sample runs/digits "text | image" --given image=some.png
"""


def _parser() -> ArgumentParser:
    from unidiff_core.sampling.options import SamplingOptions

    # Plain YAML: what is said of a given value is taken at its word, ${…} too.
    options = {"prog": "unidiffuser sample", "usage": USAGE, "description": DESCRIPTION, "parser_mode": "yaml"}
    parser = ArgumentParser(**PARSER_OPTIONS | options | {"formatter_class": DefaultsFormatter})
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="Model directory, as `unidiffuser fit` writes it.")
    add("text_spec", nargs="?", type=str, metavar="SPEC", help="Timestep spec, text form.")
    add("--spec", type=str, metavar="MAPPING", help="Timestep spec, mapping form (YAML).")
    add(
        "--given",
        action="append",
        type=str,
        default=[],
        metavar="NAME=VALUE",
        help="A value: a path to a file, or text. Repeatable.",
    )
    add("--num", type=int | None, default=None, help="Samples: one, or as many as are given, if this is not.")
    add_options_of(parser, SamplingOptions, as_group=False)
    add("--weights", choices=["ema", "model"], default="ema", help="Averaged weights, or the last ones.")
    add("--device", type=str, default="cpu", help="cpu, cuda, ...")
    add("--out", type=Path, default=Path("out"), help="Folder for the samples.")
    add("--allow_hub", action="store_true", help="Let codecs fetch weights by hub id.")
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse the options, sample, write."""
    from unidiff_core.foundation.plugin import load_plugins

    parser = _parser()
    if not {"-h", "--help"} & {*argv}:  # which needs none of them, and answers at once
        load_plugins()
    options = parser.instantiate_classes(parser.parse_args(tidied(parser, argv)))
    if options.spec is None and options.text_spec is None:
        raise ValueError('nothing to sample: give a spec, like "image | text", or --spec with a mapping')
    if options.spec is not None and options.text_spec is not None:
        raise ValueError("give SPEC or --spec, not both")
    spec = options.text_spec if options.spec is None else _mapping(options.spec, "--spec")

    from unidiff_core.sampling.options import SamplingOptions
    from unidiff_core.sampling.spec import TimestepSpec
    from unidiff_core.system import UniDiffuser

    sampling = SamplingOptions(
        **{row.name: options[row.name] for row in fields(SamplingOptions) if row.name in options}
    )
    model = UniDiffuser.from_pretrained(options.model, weights=options.weights, allow_hub=options.allow_hub)
    model = model.to(check_device(options.device))
    parsed = TimestepSpec.parse(spec, model.modalities)
    given = _given(options.given, model)
    parsed.check_supplied(given)
    num = options.num or max([1, *map(len, given.values())])
    steps = math.ceil(num / sampling.batch_size) * sampling.steps
    print(cost(parsed, sampling, model.modalities, num), file=sys.stderr, flush=True)
    with progress(f"sample {parsed}", steps, "steps", transient=True) as show:

        def advance(report: StepReport) -> None:
            show(report.step, scale=num / steps)

        solved = model.sample(parsed, given, options.num, options=sampling, on_step=advance)
    write(model, solved, options.out)


def write(model: UniDiffuser, solved: Mapping[str, list[Raw]], out: Path) -> None:
    """Write each solved modality to a folder of its own, in its codec's form, and say where."""
    console = Console(highlight=False, soft_wrap=True)
    for name, raws in solved.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        files = model.modalities[name].codec.save(raws, folder)
        console.print(f"{len(raws)} {name}: {files[-1] if files else folder}")
        if others := len(set(folder.iterdir()) - set(files)):
            console.print(f"  {folder} also holds {others} files of an earlier call; --out keeps calls apart")
        for raw in [raw for raw in raws if isinstance(raw, str)][:16]:
            console.print(f"  {raw}", markup=False)


def _given(rows: Sequence[str], model: UniDiffuser) -> dict[str, Any]:
    given: dict[str, list[Any]] = {}
    for row in rows:
        name, equals, value = row.partition("=")
        if not equals:
            raise ValueError(f"--given {row!r} is not NAME=VALUE")
        if name not in model.modalities:
            raise ValueError(f"--given {row!r}: unknown modality {name!r}; known: {', '.join(model.modalities)}")
        given.setdefault(name, []).append(model.modalities[name].codec.parse(value))
    return given


def _mapping(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{option} {text!r} is not YAML: {error}") from error
