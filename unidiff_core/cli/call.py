"""What the commands that sample share: their options, what is given, the model, what they write."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiff_core.cli.option import (
    PARSER_OPTIONS,
    DefaultsFormatter,
    Output,
    Parser,
    add_options_of,
    add_precision,
    check_device,
    tidied,
)
from unidiff_core.foundation.error import counted

if TYPE_CHECKING:
    from torch import Tensor

    from unidiff_core.codec.codec import Raw
    from unidiff_core.sampling.options import SamplingOptions
    from unidiff_core.sampling.spec import TimestepSpec
    from unidiff_core.system import UniDiffuser

LATENTS = "latents.safetensors"
ENDING = ".safetensors"
FILM = "film.html"


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
        help="A value: the path of a file, or text; or latents, as a .safetensors file. Repeatable.",
    )
    help_text = "How many samples. If it is left out: one for each value that is given, or one."
    parser.add_argument("--num", type=int | None, default=None, help=help_text)


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
    check_out(options.out)
    model = UniDiffuser.from_pretrained(
        options.model, weights=options.weights, allow_hub=options.allow_hub, precision=options.precision
    )
    return model.to(check_device(options.device))


def check_out(out: Path, folders: Iterable[str] = (), files: Iterable[str] = (), what: str = "samples") -> None:
    """Check that a folder can be written into, before the work that makes what is written there.

    Args:
        out: the folder, which need not be there.
        folders: names of folders in it that are written into.
        files: names of files in it that are written.
        what: is written, for the error.

    Raises:
        ValueError: if one cannot; says what is in the way.
    """
    for folder in (out, *(out / name for name in folders)):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            how = "may not be written to" if there.is_dir() else "is a file"
            raise ValueError(f"--out={out} cannot hold {what}: {there} {how}; name another folder")
    for file in (out / name for name in files):
        if file.exists() and (file.is_dir() or not os.access(file, os.W_OK)):
            how = "is a folder" if file.is_dir() else "may not be written to"
            raise ValueError(f"--out={out} cannot hold {what}: {file} {how}; name another folder")


def tell_idle(specs: Iterable[TimestepSpec], sampling: SamplingOptions, options: Any) -> None:
    """Say on stderr which options of guidance were given and change nothing.

    Args:
        specs: that are sampled.
        sampling: how.
        options: of the command line; what the model itself says is not told.
    """
    rows = [*specs]
    scales = sampling.guidance.values() if isinstance(sampling.guidance, Mapping) else [sampling.guidance]
    is_on = any(scales)
    if is_on and all(sampling.guidance_for(row).num_evaluations == 1 for row in rows):
        if "guidance" in options["said"]:
            told = (
                f"{'; '.join(map(str, rows))}: nothing is held and one modality solved, so there is nothing to guide by"
            )
            print(f"--guidance has no effect on {told}", file=sys.stderr, flush=True)
        return
    names = [name for name in ("guidance_interval", "guidance_rescale", "empty") if name in options["said"]]
    names += ["against"] * bool(options.get("against"))
    if not is_on and (given := [f"--{name}" for name in names if options[name] not in (None, 0.0, [])]):
        print(f"{' and '.join(given)}: no effect without --guidance", file=sys.stderr, flush=True)


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
    example = f"{next(iter(model.modalities))}=VALUE for one"
    if not equals:
        raise ValueError(f"{option} {row!r} is not NAME=VALUE, {example}")
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
        what = f"{path} is a folder" if path.is_dir() else f"no such file: {path}"
        raise ValueError(f"{what}; give a file of latents, as `unidiffuser sample --latents` writes one")
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
    replaced = ", in place of an earlier one" * (out / LATENTS).exists()
    save_file({key: value.contiguous().cpu() for key, value in latents.items()}, out / LATENTS)
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in latents.items())
    Output(highlight=False, soft_wrap=True).print(f"{shapes}: {out / LATENTS}{replaced}", markup=False)


def write(model: UniDiffuser, solved: Mapping[str, list[Raw]], out: Path) -> None:
    """Write each solved modality to a folder of its own, in its codec's form, and say where once all are written."""
    lines = []
    for name, raws in solved.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        films, before = {*folder.glob("film.*")}, {*folder.iterdir()}
        files = model.modalities[name].codec.save(raws, folder)
        lines.append(f"{len(raws)} {name}: {files[-1] if files else folder}")
        if before := before - films:
            num, left = len(before & {*files}), len(before - {*files})
            rows = [f"{counted(num, 'file')} replaced"] * (num > 0) + [f"{counted(left, 'file')} left"] * (left > 0)
            lines.append(f"  {folder} held files of an earlier call: {', '.join(rows)}; --out keeps calls apart")
        lines += [f"  {raw}" for raw in [raw for raw in raws if isinstance(raw, str)][:16]]
    console = Output(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False)
