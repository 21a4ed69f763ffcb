"""``unidiffuser sample``: any marginal, conditional or joint distribution by a timestep spec."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.progress import Progress

from unidiff_core.cli.option import PlainParser

if TYPE_CHECKING:
    from unidiff_core.codec import Raw
    from unidiff_core.system import UniDiffuser

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


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = PlainParser(prog="unidiffuser sample", description=DESCRIPTION, formatter_class=formatter)
    parser.add_argument("model", type=Path, help="model directory, as `unidiffuser fit` writes it")
    parser.add_argument("text_spec", nargs="?", metavar="SPEC", help="timestep spec, text form")
    parser.add_argument("--spec", metavar="MAPPING", help="timestep spec, mapping form (YAML)")
    parser.add_argument(
        "--given",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value; a path to a file, or text; repeatable",
    )
    parser.add_argument("--num", type=int, default=None, help="samples (default: one, or as many as are given)")
    parser.add_argument("--steps", type=int, default=50, help="solver steps (default 50)")
    parser.add_argument("--solver", default="dpmpp_2m", help="ddim, ddpm, dpmpp_2m (default), dpmpp_3m, heun")
    parser.add_argument(
        "--guidance", default="0", metavar="S", help="scale (0 is off), or a scale per given: '{text: 2}'"
    )
    parser.add_argument(
        "--drop_ignored",
        action="store_true",
        help="leave ignored modalities out of the network's input: cheaper, for models trained with drop_ignored",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same samples")
    parser.add_argument("--batch_size", type=int, default=256, help="samples at a time; changes speed only")
    parser.add_argument("--weights", choices=["ema", "model"], default="ema", help="averaged weights, or the last ones")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the samples (default out/)")
    parser.add_argument("--allow_hub", action="store_true", help="let codecs fetch weights by hub id")
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse the options, sample, write."""
    options = _parser().parse_args(list(argv))
    if options.spec is None and options.text_spec is None:
        raise ValueError('nothing to sample: give a spec, like "image | text", or --spec with a mapping')
    spec = options.text_spec if options.spec is None else _mapping(options.spec, "--spec")

    from unidiff_core.spec import TimestepSpec
    from unidiff_core.system import UniDiffuser

    model = UniDiffuser.from_pretrained(options.model, weights=options.weights, allow_hub=options.allow_hub)
    model = model.to(options.device)
    parsed = TimestepSpec.parse(spec, model.modalities)
    given = _given(options.given, model)
    parsed.check_supplied(given)
    guidance = _guidance(options.guidance)
    with Progress(transient=True) as progress:
        task = progress.add_task(f"sample {parsed}", total=None)
        solved = model.sample(
            parsed,
            given,
            options.num,
            steps=options.steps,
            solver=options.solver,
            guidance=guidance,
            drop_ignored=options.drop_ignored,
            seed=options.seed,
            batch_size=options.batch_size,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
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


def _guidance(text: str) -> float | dict[str, float]:
    value = _mapping(text, "--guidance")
    if isinstance(value, dict):
        return {name: float(scale) for name, scale in value.items()}
    if not isinstance(value, (int, float)):
        raise ValueError(f"--guidance {text!r} is neither a number nor a mapping like '{{text: 2}}'")
    return float(value)
