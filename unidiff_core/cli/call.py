"""What the commands that sample share: their options, what is given, the model, what they write."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from unidiff_core.cli.option import (
    PARSER_OPTIONS,
    DefaultsFormatter,
    Parser,
    add_options_of,
    add_precision,
    check_device,
    tidied,
)

if TYPE_CHECKING:
    from torch import Tensor

    from unidiff_core.codec.codec import Raw
    from unidiff_core.sampling.options import SamplingOptions
    from unidiff_core.system import UniDiffuser

LATENTS = "latents.safetensors"
ENDING = ".safetensors"


def parser_of(command: str, usage: str, description: str) -> Parser:
    """An empty parser. Its YAML is plain: what is said of a given value is taken at its word, ${…} too."""
    options = {"prog": f"unidiffuser {command}", "usage": usage, "description": description, "parser_mode": "yaml"}
    return Parser(**PARSER_OPTIONS | options | {"formatter_class": DefaultsFormatter})


def add_given(parser: Parser) -> None:
    """``--given`` and ``--num``."""
    parser.add_argument(
        "--given",
        action="append",
        type=str,
        default=[],
        metavar="NAME=VALUE",
        help="A value: a path to a file, or text; or latents, as a .safetensors file. Repeatable.",
    )
    parser.add_argument(
        "--num", type=int | None, default=None, help="Samples: one, or as many as are given, if this is not."
    )


def add_model(parser: Parser) -> None:
    """The options of sampling, of the model and of where to write."""
    from unidiff_core.sampling.options import SamplingOptions

    add = parser.add_argument
    add_options_of(parser, SamplingOptions, as_group=False)
    add("--weights", choices=["ema", "model"], default="ema", help="Averaged weights, or the last ones.")
    add_precision(parser)
    add("--device", type=str, default="cpu", help="cpu, cuda, ...")
    add("--out", type=Path, default=Path("out"), help="Folder for the samples.")
    add("--allow_hub", action="store_true", help="Let codecs fetch weights by hub id.")


def parsed(parser: Parser, argv: Sequence[str]) -> Any:
    """The options, with what they name made."""
    from unidiff_core.foundation.plugin import load_plugins

    if not {"-h", "--help"} & {*argv}:  # which needs none of them, and answers at once
        load_plugins()
    words = tidied(parser, argv)
    options = parser.instantiate_classes(parser.parse_args(words))
    options["said"] = [*vars(parser.parse_args(words, defaults=False))]
    return options


def sampling_of(options: Any, model: UniDiffuser) -> SamplingOptions:
    """How to sample: as was said, and else as the model does, which is told where it is not as usual."""
    from unidiff_core.sampling.options import SamplingOptions

    names = [row.name for row in fields(SamplingOptions) if row.name in options and row.name in options["said"]]
    return replace(
        SamplingOptions(),
        **model_says(model.sampling, options["said"], options.model),
        **{name: options[name] for name in names},
    )


def model_says(sampling: SamplingOptions, said: Collection[str], model: Path) -> dict[str, Any]:
    """What a model's own way of sampling is of what nobody said, as far as it is not as usual; it is told.

    Args:
        sampling: its own way.
        said: names of the options that were.
        model: where it comes from.
    """
    default = type(sampling)()
    rows = {row.name: getattr(sampling, row.name) for row in fields(sampling) if row.name not in said}
    own = {name: value for name, value in rows.items() if value != getattr(default, name)}
    if own:
        told = ", ".join(f"{name} {value}" for name, value in own.items())
        print(f"as {model} says where nothing is said: {told}", file=sys.stderr, flush=True)
    return own


def load_model(options: Any) -> UniDiffuser:
    """The model of the directory, on its device.

    Raises:
        ValueError: if nothing can be written where the samples are to go: it is told before they are drawn.
    """
    from unidiff_core.system import UniDiffuser

    options.out = options.out.expanduser()  # no shell does it in --out=~/samples
    there = next(path for path in (options.out, *options.out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is a file"
        raise ValueError(f"--out={options.out} cannot hold samples: {there} {what}; name another folder")
    model = UniDiffuser.from_pretrained(
        options.model, weights=options.weights, allow_hub=options.allow_hub, precision=options.precision
    )
    return model.to(check_device(options.device))


def steps_of(options: SamplingOptions, num: int) -> int:
    """Steps over all batches."""
    return math.ceil(num / options.batch_size) * options.steps


def given_of(rows: Sequence[str], model: UniDiffuser, option: str = "--given") -> dict[str, Any]:
    """``NAME=VALUE`` of each row → modality → raw samples, or full stream name → latents.

    Raises:
        ValueError: if a row is of another form, its modality is not known, or its value cannot be read.
    """
    given: dict[str, Any] = {}
    for row in rows:
        name, value = named_value(row, option, model)
        if value.endswith(ENDING):
            found = read_latents(Path(value), model)
            given |= {key: tensor for key, tensor in found.items() if key.startswith(f"{name}.")}
            if not any(key.startswith(f"{name}.") for key in found):
                raise ValueError(f"{option} {row!r}: the file holds no latents of {name!r}, but {', '.join(found)}")
        else:
            given.setdefault(name, []).append(model.modalities[name].codec.parse(value))
    return given


def named_value(row: str, option: str, model: UniDiffuser) -> tuple[str, str]:
    """``NAME=VALUE`` → both.

    Raises:
        ValueError: if it is of another form, or there is no such modality.
    """
    name, equals, value = row.partition("=")
    if not equals:
        raise ValueError(f"{option} {row!r} is not NAME=VALUE")
    if name not in model.modalities:
        raise ValueError(f"{option} {row!r}: unknown modality {name!r}; known: {', '.join(model.modalities)}")
    return name, value


def read_latents(path: Path, model: UniDiffuser) -> dict[str, Tensor]:
    """Latents of a file, which are of this model's streams.

    Raises:
        ValueError: if there is no such file, it is none of safetensors, or holds what is no stream.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"no such file: {path}; `unidiffuser sample --latents` writes one")
    try:
        latents = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    shapes = model.shapes
    for key, value in latents.items():
        if key not in shapes or tuple(value.shape[1:]) != tuple(shapes[key]):
            known = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
            found = f"{key!r} {tuple(value.shape)}"
            raise ValueError(f"{path} holds {found}; latents are tensors [samples, ...] of {known}")
    return {key: value.to(model.device) for key, value in latents.items()}


def write_latents(latents: Mapping[str, Tensor], out: Path) -> None:
    """Write latents as one file, and say where."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().cpu() for key, value in latents.items()}, out / LATENTS)
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in latents.items())
    Console(highlight=False, soft_wrap=True).print(f"{shapes}: {out / LATENTS}", markup=False)


def write(model: UniDiffuser, solved: Mapping[str, list[Raw]], out: Path) -> None:
    """Write each solved modality to a folder of its own, in its codec's form, and say where."""
    console = Console(highlight=False, soft_wrap=True)
    for name, raws in solved.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        films = {path.name for path in folder.glob("film.*")}
        files = model.modalities[name].codec.save(raws, folder)
        console.print(f"{len(raws)} {name}: {files[-1] if files else folder}")
        if others := len({*folder.iterdir()} - {*files} - {folder / film for film in films}):
            console.print(f"  {folder} also holds {others} files of an earlier call; --out keeps calls apart")
        for raw in [raw for raw in raws if isinstance(raw, str)][:16]:
            console.print(f"  {raw}", markup=False)


def mapping_of(text: str, option: str) -> Any:
    """YAML on the command line.

    Raises:
        ValueError: if it is none.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{option} {text!r} is not YAML: {error}") from error
