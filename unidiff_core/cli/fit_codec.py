"""`unidiffuser fit-codec`: train a network that a codec loads, and export it."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from unidiff_core.cli.option import named, shown
from unidiff_core.cli.progress import with_progress
from unidiff_core.cli.training_parser import TrainingFormatter, TrainingParser, naming_options
from unidiff_core.cli.warning import quieten_lightning
from unidiff_core.codec.training import CodecTraining, OnePass
from unidiff_core.data.location import fingerprint
from unidiff_core.foundation.atomic import open_to_all, publish
from unidiff_core.foundation.difference import differences, told
from unidiff_core.foundation.distributed import leave_group, naming_the_lost
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.shared import assemble, decided, seen_by_all, version
from unidiff_core.training.finite import SkipNonFinite, check_finite
from unidiff_core.training.signals import Signals

DESCRIPTION = """Train a network that a codec loads, and export it in the form that the codec loads it from.

An interrupted training goes on from its last checkpoint; a complete output folder is left alone. Where either is of
another configuration, the command stops and says what differs. Beside the weights stand metrics.json and something to
look at, made from held-out data.

  unidiffuser fit-codec -c recipes/digits/autoencoder.yaml
  unidiffuser fit-codec -c recipes/digits/clip.yaml --trainer.max_epochs=2 --output=/tmp/clip
"""
CONFIG = "fit_codec.yaml"
METRICS = "metrics.json"
FILES = "files.json"
"""What an export says of itself: the names of its files, which may be replaced, and what shards it was made from."""
CHECKPOINT = "last.ckpt"
RESULT = (
    *("precision", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches"),
    *("overfit_batches", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
)
"""The trainer's options on which the result depends; the others say where and how it runs."""


class CodecCLI(LightningCLI):
    """LightningCLI with an output folder."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where to, and whether anew."""
        parser.add_argument("--output", type=str, required=True, help="Folder to export the network to.")
        parser.add_argument("--overwrite", action="store_true", help="Train again although the folder is complete.")

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """With the progress in steps, unless none is wanted."""
        given = self.config_init["trainer"]
        options["callbacks"] = with_progress(given.callbacks or [], given.enable_progress_bar)
        with naming_options(vars(given)):
            return super().instantiate_trainer(**options)

    def recipe(self) -> str:
        """The whole configuration, as YAML."""
        kept = self.config.clone()
        for name in ("config", "overwrite"):
            kept.pop(name, None)
        return str(self.parser.dump(kept, skip_none=False, skip_validation=True))


def run(argv: Sequence[str]) -> None:
    """Train and export what `argv` configures; restartable.

    A complete output folder is left alone unless ``--overwrite``. An interrupted training goes on from its last
    checkpoint. The output folder appears whole or not at all.

    Raises:
        ValueError: if the output folder, or the unfinished training, is of another configuration; says what differs.
    """
    quieten_lightning()
    load_plugins()
    atexit.register(leave_group)
    cli = _parse(argv)
    output = Path(cli.config.output).expanduser()
    if getattr(cli.trainer, "fast_dev_run", False):
        _drop_checkpoints(cli.trainer)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        print("fast_dev_run: nothing is kept")
        return
    with naming_the_lost(cli.trainer, "the same command goes on from the last whole epoch"):
        assemble(cli.trainer, cli.model)
        if decided(cli.trainer, partial(_is_complete, output, cli)):
            return
        started = time.monotonic()
        work = output.with_name(output.name + ".partial")
        last = decided(cli.trainer, partial(_prepare, work, cli))
        seen_by_all(cli.trainer, partial(_data, cli, times=False), "the shards")
        data = _data(cli)
        if last:
            seen_by_all(cli.trainer, partial(version, last), f"the checkpoint {last}")
        _train(cli, work, last)
    if not cli.trainer.is_global_zero:
        return
    export = work / "export"
    metrics = _export(cli.model, cli.datamodule, export)
    _describe(export, cli.recipe(), data)
    if _is_filled(output):
        print(f"{output}: removing what was trained before, {shown(_names(output))}")
    publish(export, output)
    shutil.rmtree(work)
    print(f"{output}: {_text(metrics)}; {time.monotonic() - started:.0f} s")


def _parse(argv: Sequence[str]) -> CodecCLI:
    """Parse and instantiate; nothing is read or built yet."""
    before, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI warns where it sees arguments in both places
    try:
        return CodecCLI(
            CodecTraining,
            LightningDataModule,
            parser_class=TrainingParser,
            save_config_callback=None,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            trainer_defaults={"logger": False, "enable_checkpointing": True},
            parser_kwargs=named("fit-codec", DESCRIPTION) | {"formatter_class": TrainingFormatter},
            args=list(argv),
            run=False,
        )
    finally:
        sys.argv = before


def _is_filled(folder: Path) -> bool:
    """Whether there is such a folder, and something in it."""
    return folder.is_dir() and any(folder.iterdir())


def _names(folder: Path) -> list[str]:
    """Its files, by their paths in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _check_own(output: Path) -> None:
    """Refuse to put the export in place of anything but an earlier one.

    Raises:
        ValueError: if there is a file, or a folder that holds what this command did not write; names that.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is no folder; give another --output")
    if not _is_filled(output):
        return
    if not (output / CONFIG).is_file():
        raise ValueError(
            f"{output} is not what `unidiffuser fit-codec` writes, for it has no {CONFIG}; give another --output"
        )
    listed = _listed(output).get("files", _names(output))
    if foreign := sorted({*_names(output)} - {*listed}):
        raise ValueError(
            f"{output} holds what `unidiffuser fit-codec` did not write, {shown(foreign)}; move it, or give another "
            "--output"
        )


def _listed(output: Path) -> dict[str, Any]:
    """What an export says of itself: nothing, if it is of an older version."""
    return json.loads((output / FILES).read_text()) if (output / FILES).is_file() else {}


def _data(cli: CodecCLI, *, times: bool = True) -> Any:
    """What shows that the shards of a training changed; None if its data is of another kind."""
    folder = getattr(cli.datamodule, "folder", None)
    return None if folder is None else fingerprint(folder, times=times)


def _describe(export: Path, recipe: str, data: Any) -> None:
    """Write beside the weights what they were made with, and make all readable."""
    (export / CONFIG).write_text(recipe)
    listed = {"files": [*_names(export), FILES], "data": data}
    (export / FILES).write_text(json.dumps(listed, indent=1) + "\n")
    open_to_all(export)


def _is_complete(output: Path, cli: CodecCLI) -> bool:
    """Whether there is nothing to do, which is said.

    Raises:
        ValueError: if the folder is not ours.
    """
    _check_own(output)
    if not _is_filled(output) or cli.config.overwrite:
        return False
    _explain_skip(output, cli)
    return True


def _explain_skip(output: Path, cli: CodecCLI) -> None:
    if found := _differences(output, cli, of_trainer=RESULT):
        raise ValueError(
            f"{output} is complete, but of another configuration: {told(found)}. Give another --output to keep it, or "
            "--overwrite to train it again"
        )
    how, data = "complete", None
    with suppress(ValueError, OSError):  # the shards need not be there any more
        data = _data(cli)
    if data and data != _listed(output).get("data", data):
        how = "complete, but made from OTHER data: its shards have changed since"
    print(f"{output} is {how}; skipped. Give --overwrite to train it again.")


def _differences(folder: Path, cli: CodecCLI, of_trainer: Sequence[str] = ()) -> dict[str, str]:
    """What the configuration in a folder and the present one differ in, as far as the result depends on it."""
    texts = (folder / CONFIG).read_text(), cli.recipe()
    before, now = (_settings(yaml.safe_load(text), of_trainer) for text in texts)
    return differences(before, now)


def _settings(recipe: dict[str, Any], of_trainer: Sequence[str]) -> dict[str, Any]:
    trainer = {name: value for name, value in recipe.get("trainer", {}).items() if name in of_trainer}
    return {name: value for name, value in recipe.items() if name != "output"} | {"trainer": trainer}


def _prepare(work: Path, cli: CodecCLI) -> Path | None:
    """Make the folder of the unfinished training, or check that the one there can go on. One process does.

    Returns:
        The checkpoint to go on from, if there is one.

    Raises:
        ValueError: if it holds something else, or a training of another model or data.
    """
    if _is_filled(work) and not (work / CONFIG).is_file():
        raise ValueError(f"{work} is where an unfinished training is kept, and holds something else; move it away")
    if (work / CHECKPOINT).is_file():
        if (found := _differences(work, cli)) and not cli.config.overwrite:
            raise ValueError(
                f"{work} is an unfinished training of another configuration: {told(found)}. Give that to go on with "
                "it, or --overwrite to start over"
            )
        if found:
            print(f"{work} is of another configuration; starting over, without its {shown(_names(work))}")
            shutil.rmtree(work)
        elif changed := _differences(work, cli, of_trainer=RESULT):
            print(f"{work} goes on with other settings: {told(changed)}")
    shutil.rmtree(work / "export", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    (work / CONFIG).write_text(cli.recipe())
    last = work / CHECKPOINT
    if not last.is_file():
        return None
    print(f"going on from {last}")
    return last


def _drop_checkpoints(trainer: Any) -> None:
    trainer.callbacks = [row for row in trainer.callbacks if not isinstance(row, Checkpoint)]


def _train(cli: CodecCLI, work: Path, last: Path | None) -> None:
    if isinstance(cli.model, OnePass):
        cli.datamodule.setup("fit")
        return
    trainer: Trainer = cli.trainer
    keep = ModelCheckpoint(dirpath=work, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    _drop_checkpoints(trainer)
    stop = Signals("only whole epochs are; the same command goes on from the last one")
    trainer.callbacks += [SkipNonFinite(), stop, keep]  # type: ignore[attr-defined]
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=last, weights_only=True)
    if not trainer.global_step:
        raise ValueError(
            f"no step was taken, so nothing is exported: trainer.max_epochs is {trainer.max_epochs}, trainer.max_steps "
            f"{trainer.max_steps}"
        )


def _export(model: CodecTraining, data: Any, folder: Path) -> dict[str, float]:
    check_finite(None, model.state_dict(), str(folder))
    folder.mkdir()
    metrics = model.export(folder, data)
    (folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
    model.show(folder, data)
    return metrics


def _text(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
