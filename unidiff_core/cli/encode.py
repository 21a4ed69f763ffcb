"""``unidiffuser encode``: raw shards to stored latents, shard by shard."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace, set_parsing_settings

from unidiff_core.cli.option import CONFIG, Parser, check_device, named, shown, spread
from unidiff_core.codec.codec import Codec
from unidiff_core.data.cleaner import Cleaner
from unidiff_core.data.damage import Damage
from unidiff_core.data.encoding import RawReader, SampleEncoder
from unidiff_core.data.filter import Filter
from unidiff_core.data.job import EncodingJob
from unidiff_core.data.location import list_shards
from unidiff_core.data.shard import MANIFEST, Endings
from unidiff_core.foundation.error import counted
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.progress import progress
from unidiff_core.serialization.description import describe_codecs

DESCRIPTION = """Encode raw shards to stored latents, once, so that training loads no frozen network.

Each shard becomes one of the same name, written beside its target and renamed: an interrupted run goes on with the
first shard that is not there. Several tasks may share the work; the last to finish writes the manifest.

  unidiffuser encode -c recipes/digits/encode.yaml --batch_size=64
  unidiffuser encode -c encode.yaml --workers=8             processes on one machine, without a GPU
  unidiffuser encode -c encode.yaml --task=3 --tasks=16     or as a SLURM array: sbatch --array=0-15 ...
"""
CHANGING = ("codecs", "members", "dtype", "keep", "clean", "missing")
"""The options on which the result depends."""


def run(argv: Sequence[str]) -> None:
    """Parse the options and encode each folder."""
    parser = _parser()
    config = parser.parse_args(list(argv))
    config.codecs = spread(config.codecs, "codecs")
    options = parser.instantiate_classes(config)
    if not 0 <= options.task < options.tasks:
        raise ValueError(f"there is no task {options.task} of {options.tasks}; --task counts from 0 to --tasks - 1")
    if options.overwrite and options.tasks > 1:
        raise ValueError("--overwrite is for one task, since another's shards would go; remove the folder first")
    if options.workers < 1 or (options.workers > 1 and options.device != "cpu"):
        raise ValueError(
            "--workers counts processes on this machine's processors, from 1; several devices take a task each: "
            "torchrun --nproc_per_node=8 --no-python unidiffuser encode … --device=cuda"
        )
    encoder = _encoder(options)
    jobs = _jobs(options, encoder, _settings(config, options.codecs))
    for job in jobs:
        job.check_apart([shard for other in jobs for shard in other.shards])
    for job in jobs:
        _encode(job, options)


def _parser() -> Parser:
    load_plugins()
    task, tasks = find_task(os.environ)
    parser = Parser(**named("encode", DESCRIPTION))
    add = parser.add_argument
    add("-c", "--config", action="config", help=CONFIG)
    add("--codecs", type=dict[str, Codec], required=True, help="modality -> codec; `a, b: …` gives like ones the same")
    add(
        "--folders",
        type=dict[str, str],
        required=True,
        help="shards -> folder for what is stored. Shards are a folder, a pattern (d/{00000..00099}.tar, d/*.tar) or a "
        "URL that fsspec reads (s3://, https://). Several of them may go to one folder",
    )
    add(
        "--members",
        type=dict[str, Endings],
        default={},
        help="modality -> member ending, if not the codec's, or several of which a sample has one: "
        "{image: [jpg, jpeg, png]}",
    )
    add("--keep", type=list[Filter], default=[], help="what a sample must pass: [{field: width, at_least: 512}, ...]")
    add("--clean", type=dict[str, Cleaner], default={}, help="modality -> what cleans its raw samples")
    add(
        "--missing",
        type=Literal["error", "keep"],
        default="error",
        help="may a sample lack a modality? One that cleaning leaves nothing of is dropped, or kept without it",
    )
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_class_arguments(Damage, "damage")
    add("--batch_size", type=int, default=256, help="samples encoded at a time")
    add("--dtype", type=Literal["float32", "float16"], default="float32", help="of what is stored")
    add("--device", type=str, default="cpu", help="cpu, cuda (under torchrun each process's own), cuda:1, ...")
    where = "of SLURM_ARRAY_TASK_ID and _COUNT, or RANK and WORLD_SIZE, if they are set"
    add("--task", type=int, default=task, help=f"which task this is, from 0; the default is that {where}")
    add("--tasks", type=int, default=tasks, help="how many tasks share the shards, each taking every N-th; as --task")
    add("--workers", type=int, default=1, help="processes that share the task's shards, each with the codecs' networks")
    add("--finish", action="store_true", help="encode nothing; write the manifest of what all tasks have done")
    add("--verify", type=bool, default=True, help="compare shards with the SHA-256 in their manifest, if there is one")
    add("--allow_pipe", action="store_true", help="let pipe: shards run their shell command")
    add("--overwrite", action="store_true", help="encode again what is encoded already")
    return parser


def find_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """(task, tasks) by the environment of a SLURM array or of torchrun; (0, 1) if it has none.

    An array may start at another number than 0 and have a step.
    """
    if {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"} <= environment.keys():
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
        return (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step, int(environment["SLURM_ARRAY_TASK_COUNT"])
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    return 0, 1


def find_device(device: str, environment: Mapping[str, str], num: int) -> str:
    """``cuda`` is the device of this process's own: torchrun counts those of a machine in LOCAL_RANK.

    Args:
        device: as it was given; ``cuda:1`` stays.
        environment: of the process.
        num: devices that it sees.
    """
    if device != "cuda" or "LOCAL_RANK" not in environment:
        return device
    return f"cuda:{int(environment['LOCAL_RANK']) % max(1, num)}"


def _encoder(options: Namespace) -> SampleEncoder:
    device = find_device(check_device(options.device), os.environ, torch.cuda.device_count())
    codecs = {name: codec.to(device) for name, codec in options.codecs.items()}
    reader = RawReader(codecs, options.members, options.clean)
    dtype = getattr(torch, options.dtype)
    return SampleEncoder(
        reader, options.batch_size, dtype, keep=options.keep, missing=options.missing, damage=options.damage
    )


def _jobs(options: Namespace, encoder: SampleEncoder, settings: dict[str, Any]) -> list[EncodingJob]:
    sources: dict[str, list[str]] = {}
    for source, target in options.folders.items():
        sources.setdefault(os.path.normpath(Path(target).expanduser()), []).append(source)
    codecs = describe_codecs(options.codecs)
    return [
        EncodingJob(
            encoder,
            list_shards(places, allow_pipe=options.allow_pipe, allow_absent=options.damage.policy != "fail"),
            Path(target),
            settings=settings,
            codecs=codecs,
            verify=options.verify,
            allow_pipe=options.allow_pipe,
        )
        for target, places in sources.items()
    ]


def _encode(job: EncodingJob, options: Namespace) -> None:
    if options.overwrite:
        if earlier := job.earlier():
            print(f"{job.target}: removing what was encoded before, {shown(earlier)}")
        job.start_over()
    elif job.is_complete():
        print(f"{job.target} is complete; --overwrite encodes it again")
        return
    elif (job.target / MANIFEST).is_file():
        print(f"{job.target} was complete; its sources have changed since, and are encoded: {shown(job.unfinished())}")
    if options.finish:
        print(f"{job.target}: {job.finish()}")
        return
    own = len(job.names[options.task :: options.tasks])
    done = itertools.count(1)
    with progress(f"encode {job.target}", own, "shards") as show:
        tally = job.run(options.task, options.tasks, lambda: show(next(done), scale=0), options.workers)
    what = f" (task {options.task} of {options.tasks}, {own} of {len(job.names)} shards)" if options.tasks > 1 else ""
    print(f"{job.target}{what}: {tally}")
    if unfinished := job.unfinished():
        left = counted(len(unfinished), "shard")
        print(f"{left} left to other tasks; the last to finish writes the manifest")


def _settings(config: Namespace, codecs: Mapping[str, Codec]) -> dict[str, Any]:
    """What the result depends on: of a codec not what changes only what it decodes."""
    settings = {name: _plain(config[name]) for name in CHANGING}
    for name, codec in codecs.items():
        for argument in codec.decoding:
            settings["codecs"][name]["init_args"].pop(argument, None)
    return settings


def _plain(value: Any) -> Any:
    """Parsed options as plain data."""
    if isinstance(value, Namespace):
        return _plain(value.as_dict())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
