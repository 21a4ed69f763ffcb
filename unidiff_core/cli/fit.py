"""``unidiffuser fit|validate|test``: Lightning's CLI over `UniDiffuser`."""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies import StrategyRegistry
from pytorch_lightning.utilities import rank_zero_only

from unidiff_core.cli.list import processes
from unidiff_core.cli.option import named, spread
from unidiff_core.cli.progress import with_progress
from unidiff_core.cli.training_parser import TrainingFormatter, TrainingParser, naming_options
from unidiff_core.cli.warning import quieten_lightning
from unidiff_core.codec.codec import Codec
from unidiff_core.data.location import notes_at
from unidiff_core.data.module import OrderedData
from unidiff_core.foundation.distributed import leave_group, naming_the_lost
from unidiff_core.foundation.error import counted
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.shared import assemble, decided, seen_by_all, version
from unidiff_core.system import UniDiffuser
from unidiff_core.training.checkpoint import KeepLast, step_in
from unidiff_core.training.fsdp import FSDP2
from unidiff_core.training.learning_rate import is_time_over, undecayed
from unidiff_core.training.newest import NEEDED, newest_verified, verify
from unidiff_core.training.signals import Stopped

DESCRIPTION = """{what}

The configuration is a YAML file with the sections model, data and trainer; every value in it can be overridden.
`unidiffuser list` shows the classes that an option can name, and `unidiffuser list NAME` what one takes.

{examples}
"""
EXAMPLES = {
    "fit": """  unidiffuser fit -c recipes/digits/fit.yaml
  unidiffuser fit -c recipes/digits/fit.yaml --trainer.max_steps=500 --model.modalities.image.weight=2
  unidiffuser fit -c recipes/digits/fit.yaml --trainer.default_root_dir=runs/mine     another folder for all of it
  unidiffuser fit -c recipes/digits/fit.yaml --print_config     what it all comes to
  torchrun --nproc_per_node=8 --no-python unidiffuser fit -c CONFIG.yaml --trainer.devices=8""",
    "validate": """  unidiffuser validate -c recipes/digits/fit.yaml
  unidiffuser validate -c recipes/digits/fit.yaml --ckpt_path=runs/digits/checkpoints/last.ckpt""",
    "test": """  unidiffuser test -c recipes/digits/fit.yaml
  unidiffuser test -c recipes/digits/fit.yaml --ckpt_path=runs/digits/checkpoints/last.ckpt""",
}
WHAT = {
    "fit": "Train a UniDiffuser, from its newest checkpoint if there is one (ckpt_path: last).",
    "validate": "Compute the loss of a checkpoint's weights on the validation data.\n\n"
    "The checkpoint is the newest of the run where the recipe says ckpt_path: last, or any by --ckpt_path=FILE.",
    "test": "Compute the loss of a checkpoint's weights on the test data.\n\n"
    "The checkpoint is the newest of the run where the recipe says ckpt_path: last, or any by --ckpt_path=FILE.",
}
CHECKPOINT = {
    "fit": "Checkpoint to go on from: a path, or 'last', the newest of this run.",
    "validate": "Checkpoint whose weights are measured: a path, or 'last', the newest of this run.",
    "test": "Checkpoint whose weights are measured: a path, or 'last', the newest of this run.",
}


class UniDiffuserCLI(LightningCLI):
    """Lightning's CLI for one command, without its subcommand level: ``${trainer.max_steps}`` means what it says."""

    def __init__(self, command: str, args: ArgsType) -> None:
        self.command = command
        super().__init__(
            UniDiffuser,
            OrderedData,
            parser_class=TrainingParser,
            run=False,
            save_config_callback=None,  # the model directory records the configuration
            seed_everything_default=0,
            # Our data module splits the global batch over processes itself, whatever the strategy.
            trainer_defaults={"use_distributed_sampler": False},
            parser_kwargs=named(command, DESCRIPTION.format(what=WHAT[command], examples=EXAMPLES[command]))
            | {"formatter_class": TrainingFormatter},
            auto_configure_optimizers=False,
            args=args,
        )

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """With the progress in steps, unless none is wanted; without checkpoints in a `fast_dev_run`."""
        given = self.config_init["trainer"]
        callbacks = [KeepLast(), *(given.callbacks or [])]
        if given.fast_dev_run:  # leaves nothing behind; Lightning still writes last.ckpt at the end
            callbacks = [row for row in callbacks if not isinstance(row, Checkpoint)]
        options["callbacks"] = with_progress(callbacks, given.enable_progress_bar)
        with naming_options(vars(given)):
            return super().instantiate_trainer(**options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What Lightning's subcommands take besides; and the processes, for the help."""
        parser.add_argument("--ckpt_path", type=str | None, help=CHECKPOINT[self.command])
        parser.add_argument(
            "--begin_from",
            type=str | None,
            help="An earlier stage's checkpoint: its weights, optimizer and step, while this run has no 'last' yet.",
        )
        parser.add_argument_group(
            "processes, for model.modalities.NAME.process (`unidiffuser list processes` explains them)",
            processes(load_plugins()),
        )

    def before_instantiate_classes(self) -> None:
        """Like modalities get a block each; codecs that are left out are those that the latents' manifest records."""
        modalities = spread(self.config.get("model.modalities") or {}, "model.modalities")
        if modalities:
            self.config.model.modalities = modalities
        lacking = [name for name, row in modalities.items() if row.init_args.codec is None]
        if lacking:
            for name, codec in codecs_beside(self.config.data.train, lacking).items():
                modalities[name].init_args.codec = codec

    @property
    def _is_dry(self) -> bool:
        """Whether this is a `fast_dev_run`: a few steps from the start, of which nothing is kept."""
        return bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint to go on from, as this process sees it; None if there is none yet.

        Raises:
            ValueError: if it is a URL, or a path at which there is nothing.
        """
        path = self.config.get("ckpt_path")
        if path == "last" and self._is_dry:
            return None
        if path is None and SLURMEnvironment.detect():
            return self.trainer._checkpoint_connector._hpc_resume_path  # as Lightning does
        if path == "last":
            if found := self._newest():
                return found
            path = self.config.get("begin_from")
            if path is None and self.command != "fit" and not self.config.get("model.start"):
                raise ValueError(
                    f"there is no checkpoint in {self.trainer.default_root_dir}, whose weights `unidiffuser "
                    f"{self.command}` would measure: give --trainer.default_root_dir of a run, or --ckpt_path=FILE"
                )
        if path and "://" in path:
            raise ValueError(f"{path}: a checkpoint is not read from a URL; download it and give its path")
        if path and not Path(path).exists():
            raise ValueError(f"the checkpoint {path}: no such file")
        return path

    def _agreed_checkpoint(self) -> str | None:
        """`checkpoint` as the first process sees it, on all; each has looked through what it will read itself.

        Raises:
            ValueError: if it is not there, or damaged.
        """
        assemble(self.trainer, self.model)
        path = decided(self.trainer, lambda: self.checkpoint)
        if path:
            seen_by_all(self.trainer, partial(version, path), f"the checkpoint {path}")
        if path and Path(path).is_file():
            verify(path, self.model, needed=NEEDED if self.command == "fit" else ["state_dict"])
        return path

    def _newest(self) -> str | None:
        """The newest checkpoint of this run that verifies, by whatever callback or signal it was written."""
        root = Path(self.trainer.default_root_dir)
        folders = {
            getattr(callback, "dirpath", None) or root / "checkpoints" for callback in self.trainer.checkpoint_callbacks
        }
        found = {file for folder in folders for file in Path(folder).glob("*.ckpt")}
        found |= {file for pattern in ("hpc_ckpt_*.ckpt", "last*.ckpt") for file in root.glob(pattern)}
        newest, skipped = newest_verified({file.resolve() for file in found}, self.model)
        for sentence in skipped:
            rank_zero_only(print)(sentence)
        return str(newest) if newest else None

    def _other_folders(self) -> list[str]:
        """What of this run is written outside of its folder, each with where to."""
        trainer: Trainer = self.trainer
        places = [(row, getattr(row, name, None)) for row in trainer.callbacks for name in ("folder", "dirpath")]  # type: ignore[attr-defined]
        places += [(row, row.save_dir) for row in trainer.loggers]
        root = Path(trainer.default_root_dir).resolve()
        return [
            f"{type(row).__name__} writes to {place}"
            for row, place in places
            if place and "://" not in str(place) and root not in [(own := Path(place).resolve()), *own.parents]
        ]

    def run(self) -> None:
        """Run the command, opening no pickle beyond tensors and plain data."""
        method: Any = getattr(self.trainer, self.command)
        if self.command == "fit" and (others := self._other_folders()):
            where = self.trainer.default_root_dir
            warnings.warn(
                f"this run writes into several folders: trainer.default_root_dir is {where}, but {', '.join(others)}. "
                "--print_config prints every ${…} resolved: write ${trainer.default_root_dir} there, or give each",
                stacklevel=1,
            )
        try:
            with naming_the_lost(self.trainer, "ckpt_path: last goes on from the newest checkpoint"):
                checkpoint = self._agreed_checkpoint()
                begun = step_in(checkpoint) if checkpoint else -1  # now: it may be written over
                method(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except Stopped as stop:
            if stop.said and stop.path:
                again = "the same command goes" if self.config.get("ckpt_path") == "last" else "--ckpt_path=last goes"
                stop.said += f"; {again} on from there"
            raise
        if self.command == "fit" and self.trainer.is_global_zero:
            print(self._outcome(begun))

    def _outcome(self, begun: int) -> str:
        """How far the training has come since step `begun`, what stopped it before its end, and how it goes on."""
        trainer: Trainer = self.trainer
        done, most = trainer.global_step, trainer.max_steps
        said = f"{counted(done, 'step')} done" + (f" of max_steps {most}" if most > 0 else "")
        if done == begun:
            said = f"nothing to train: {said}"
        if is_time_over(trainer):
            said += "; trainer.max_time is over, which counts earlier sittings of the run"
            if rate := undecayed(trainer):
                said += (
                    f". The learning rate was at {rate:.0%} of its peak: with decay_in_time, Warmup ends with the time"
                )
        elif done == begun and 0 < most <= done:
            said += "; a larger --trainer.max_steps goes on, another --trainer.default_root_dir begins anew"
        return said


def codecs_beside(where: str | list[str], names: Sequence[str]) -> dict[str, Namespace]:
    """Modality → the codec that encoded its latents, as the manifest beside them records it, as a parsed option.

    Raises:
        ValueError: if no manifest says, or two say different things; names the option that does.
    """
    found: dict[str, Any] = {}
    try:
        notes = list(notes_at(where, "codecs"))
    except ValueError as error:
        raise ValueError(
            f"no codec is given for {', '.join(names)}, so it is read from the manifest of data.train: {error}; or "
            f"give model.modalities.{names[0]}.codec"
        ) from error
    for codecs in notes:
        if not isinstance(codecs, dict):
            raise ValueError(f"the manifest of {where} names no codecs by modality, but {codecs!r}")
        for name in names:
            if name in codecs and found.setdefault(name, codecs[name]) != codecs[name]:
                raise ValueError(
                    f"the latents of {name!r} at {where} were encoded by several codecs; say which with "
                    f"model.modalities.{name}.codec, or encode them again"
                )
    if absent := [name for name in names if name not in found]:
        raise ValueError(
            f"no codec is given for {', '.join(absent)}, and no manifest beside {where} records one "
            f"(`unidiffuser encode` does); give model.modalities.{absent[0]}.codec"
        )
    if foreign := [name for name in names if not (isinstance(found[name], dict) and "class" in found[name])]:
        raise ValueError(f"the manifest beside {where} describes no codec for {foreign[0]!r}: {found[foreign[0]]!r}")
    return {name: _as_option(found[name], Codec) for name in names}


def _as_option(config: Any, kind: type = object) -> Any:
    """A described object as the parser has it: ``class_path`` and ``init_args``, registered names only."""
    if isinstance(config, list):
        return [_as_option(item) for item in config]
    if not isinstance(config, dict):
        return config
    fields = {name: _as_option(value) for name, value in config.items() if name != "class"}
    if "class" not in config:
        return fields
    cls = load_plugins().find(config["class"], kind)
    return Namespace(class_path=f"{cls.__module__}.{cls.__qualname__}", init_args=Namespace(**fields))


def prepare() -> None:
    """Load the plugins, make our strategy known, and quieten Lightning."""
    quieten_lightning()
    load_plugins()
    if "fsdp2" not in StrategyRegistry:
        StrategyRegistry.register("fsdp2", FSDP2, "FSDP2 over all processes; checkpoints that any strategy reads")


def run(argv: Sequence[str]) -> None:
    """Run the command that `argv` begins with."""
    prepare()
    atexit.register(leave_group)
    UniDiffuserCLI(argv[0], list(argv[1:])).run()
