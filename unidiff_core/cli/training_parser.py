"""Lightning's parser, whose errors say what was meant and whose help is for a person."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from unidiff_core.cli.option import Explaining, HelpFormatter

TITLES = {
    "model": "model: what is trained",
    "data": "data: what it is trained on",
    "trainer": "trainer: how long, into which folder and on which devices (Lightning's Trainer)",
}
"""First part of a group's options → its title."""
TIME = "DD:HH:MM:SS (days, hours, minutes, seconds), 00:00:00:10 say"
FIRST = {
    "default_root_dir": "Folder of this run: checkpoints and logs.",
    "max_steps": "Optimizer steps after which it ends; -1 is no end.",
    "max_epochs": "Passes over the data after which it ends; -1 is no end.",
    "max_time": f"Time after which it ends, {TIME}.",
    "fast_dev_run": "Take this many batches, as a trial, and keep nothing; true is 1.",
    "accelerator": "cpu, gpu, or auto for what is there.",
    "devices": "How many devices on each machine, 2; or which, [0, 1]; auto for all.",
    "num_nodes": "How many machines.",
    "strategy": "How devices share the work: auto, ddp, fsdp2, or a strategy of Lightning's.",
    "precision": "32-true, bf16-mixed, 16-mixed, bf16-true, 16-true or 64-true.",
    "val_check_interval": f"Batches, or as a fraction a part of an epoch, between validations; or a time, {TIME}.",
    "check_val_every_n_epoch": "Epochs between validations; null counts val_check_interval across epochs.",
    "limit_val_batches": "Batches of a validation, or as a fraction a part of its data.",
    "gradient_clip_val": "Norm to which gradients are clipped.",
    "log_every_n_steps": "Steps between logged values.",
    "callbacks": "What else happens in a training: a list of classes; `unidiffuser list` shows this package's.",
    "logger": "Where values are logged: false, true for files in the run's folder, or a logger of Lightning's.",
    "enable_progress_bar": "Whether to show the progress.",
}
"""The trainer's options that are used most, in words for this program."""
OTHERS = "Those that are used most. The others, which Lightning's documentation of its Trainer explains:"
CLASS = "A class; --{name}.OPTION=VALUE is what it takes, and --{name}.help=CLASS shows that."
FEW = 8
"""Classes that are listed in the help of an option that takes one."""
_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?([\w ]+)`")
_CODE = re.compile(r"``(.+?)``")
_TIME = re.compile(r"\d+:\d+:\d+:\d+")


class TrainingFormatter(HelpFormatter):
    """Plain text: no markup of Lightning's documentation, no type expressions, few classes of many."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = _CODE.sub(r"\1", _ROLE.sub(r"\1", super()._expand_help(action)))
        head, _, name = action.dest.partition(".")
        if not name and head in TITLES:
            return f"{CLASS.format(name=head)} {text[text.rfind('(') :]}"
        if head != "trainer" or name not in FIRST:
            return text
        default = re.search(r" \(default: [^;]+?(?=[;)])", text)
        return FIRST[name] + (f"{default[0]})" if default else "")

    def _noted(self, notes: str) -> str:
        rows = [row for row in ("required",) if notes.startswith(row)]
        if found := re.search(r"default: (.+?)(?=, known subclasses: |\)$)", notes):
            rows.append(f"default: {found[1]}")
        classes = (re.findall(r"known subclasses: (.+?)\)$", notes) or [""])[0].split(", ")
        if classes != [""]:
            more = f", and {len(classes) - FEW} more" if len(classes) > FEW else ""
            rows.append(f"classes: {', '.join(classes[:FEW])}{more}")
        return f"{'; '.join(rows)})" if rows else ""


class TrainingParser(Explaining, LightningArgumentParser):
    """The parser of a command that trains."""

    def format_help(self, formatter: Any = None) -> str:
        """The command's own options first, then those of model and data, and the trainer's last."""
        groups: dict[str, list[Any]] = {name: [] for name in ("", *TITLES)}
        for group in self._action_groups:
            name = next((row.dest for row in group._group_actions), "").partition(".")[0]
            groups[name if name in TITLES else ""].append(group)
        for name, title in TITLES.items():
            for group in groups[name]:
                group.title = title
                parts = [row for row in group._group_actions if "." in row.dest and not _is_of_class(row)]
                group._group_actions = parts or [row for row in group._group_actions if not _is_of_class(row)]
        names = [f"trainer.{row}" for row in FIRST]
        for group in groups["trainer"]:
            rows = {row.dest: row for row in group._group_actions}
            rest = ", ".join(name.removeprefix("trainer.") for name in rows if name not in names)
            group._group_actions = [rows[name] for name in names if name in rows]
            group.description = textwrap.fill(f"{OTHERS} {rest}.", 100)
        own, others = groups[""][:2], groups[""][2:]
        self._action_groups = [*own, *groups["model"], *groups["data"], *others, *groups["trainer"]]
        return str(super().format_help(formatter))


def _is_of_class(action: argparse.Action) -> bool:
    """Whether it is no option of the command, but shows what a class takes."""
    return any(option.endswith(".help") for option in action.option_strings)


@contextmanager
def naming_options(given: Mapping[str, Any]) -> Iterator[None]:
    """What the trainer refuses is said with the option and its value.

    Args:
        given: the trainer's options by name.

    Raises:
        ValueError: in place of Lightning's error.
    """
    check_times(given)
    try:
        yield
    except (MisconfigurationException, TypeError, ValueError) as error:
        message = str(error)
        names = [name for name in given if re.search(rf"\b{name}\b", message) and given[name] is not None]
        if not names or message.startswith(("--", "trainer.")):
            raise
        said = " and ".join(f"--trainer.{name}={given[name]!r}" for name in names)
        raise ValueError(f"{said}: {message}") from error


def check_times(given: Mapping[str, Any]) -> None:
    """Check the trainer's options that are times.

    Raises:
        ValueError: if one is a text of another form.
    """
    for name in ("max_time", "val_check_interval"):
        value = given.get(name)
        if isinstance(value, str) and not _TIME.fullmatch(value):
            raise ValueError(f"--trainer.{name}={value!r}: a time is {TIME}")
