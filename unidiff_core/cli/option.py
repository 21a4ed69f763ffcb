"""What the commands' option parsers have in common."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings
from rich.console import Console

from unidiff_core.cli.refusal import explained
from unidiff_core.foundation.error import counted, sentence

if TYPE_CHECKING:
    from unidiff_core.modality import Modality
    from unidiff_core.sampling.options import SamplingOptions
    from unidiff_core.sampling.spec import TimestepSpec

_NONE = re.compile(r"(?:, )?default: (?:null|\{\}|\[\])(?=[,)])")
_CLASS = re.compile(r"<class '([\w.]+)'>")
_MODULE = re.compile(r"\b(?:\w+\.)+(?=[A-Z])")
_DEFAULT = re.compile(r"default: .+?(?=, known subclasses: |\)$)")

MODEL = "Model directory, as `unidiffuser fit` or `convert` writes it."
CONFIG = "YAML file with these options; what stands after it overrides it. Repeatable."
SAID = {
    "config": CONFIG,
    "print_config": "Print what all options come to, as YAML, and exit.",
    "seed_everything": "Seed of the global random state, of Python, NumPy and torch. (default: 0)",
}
"""Options that jsonargparse and Lightning explain otherwise, each in words of its own."""


def spread(rows: Mapping[str, Any], option: str) -> dict[str, Any]:
    """Options of several names said once: ``{"a, b": x}`` → ``{"a": x, "b": x}``, each with an ``x`` of its own.

    Args:
        rows: name, or names with commas between, → options before anything is made of them.
        option: what the rows are given as, for the error.

    Raises:
        ValueError: if a name is empty, or stands twice.
    """
    spread: dict[str, Any] = {}
    for names, row in rows.items():
        for name in (part.strip() for part in names.split(",")):
            if not name or name in spread:
                said = f"{name!r} twice" if name else f"an empty name in {names!r}"
                raise ValueError(f"{option} says {said}; separate names by one comma, and say each once")
            spread[name] = deepcopy(row)
    return spread


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples; shows classes without their modules, and no default where there is none."""

    def _expand_help(self, action: argparse.Action) -> str:
        if action.dest in SAID:
            return SAID[action.dest]
        text, bracket, notes = super()._expand_help(action).rpartition(" (")
        if not bracket:
            return notes
        notes = self._noted(_MODULE.sub("", _CLASS.sub(r"\1", _NONE.sub("", notes)))).removeprefix(", ")
        return f"{text} ({notes}" if notes.strip(")") else text

    def _noted(self, notes: str) -> str:
        return notes


class DefaultsFormatter(HelpFormatter):
    """Shows defaults alone: for a command whose options are explained in words."""

    def _noted(self, notes: str) -> str:
        return f"{default[0]})" if (default := _DEFAULT.search(notes)) else ""


PARSER_OPTIONS: dict[str, Any] = {
    # ${…} is resolved after the overrides; plain "omegaconf" silently keeps the old value.
    "parser_mode": "omegaconf+",
    # Errors are raised, so that a person reads one paragraph and not the usage of a hundred options.
    "exit_on_error": False,
    # --guid is not --guidance: a script that says it would mean something else once there is another option like it.
    "allow_abbrev": False,
    "formatter_class": HelpFormatter,
}
"""Keyword arguments for every jsonargparse parser."""


def named(command: str, description: str, *, takes_directory: bool = False) -> dict[str, Any]:
    """Keyword arguments for the parser of a command that a YAML file configures."""
    usage = f"unidiffuser {command} {'MODEL ' if takes_directory else ''}-c CONFIG.yaml [--OPTION=VALUE ...]"
    return PARSER_OPTIONS | {"prog": f"unidiffuser {command}", "usage": usage, "description": description}


def shown(names: Sequence[Any]) -> str:
    """How many there are, and the first few."""
    return f"{len(names)}: {', '.join(map(str, names[:5]))}{', …' * (len(names) > 5)}"


class Output(Console):
    """The terminal, as rich writes to it; a reader that has seen enough ends the command as `main` does."""

    def on_broken_pipe(self) -> None:
        """Raise, in place of an exit with code 1."""
        raise BrokenPipeError


class PlainParser(argparse.ArgumentParser):
    """The standard library's parser, for commands without a configuration file; its errors are raised too."""

    def __init__(self, command: str, description: str) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        prog = f"unidiffuser {command}"
        super().__init__(prog=prog, description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise, in place of printing the usage and exiting."""
        message = explained(message, self._option_string_actions)
        raise ValueError(f"{sentence(message)} `{self.prog} --help` lists the options.")


class Explaining:
    """For parsers of jsonargparse: errors say what was meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise, with what is known."""
        parser: Any = super()
        own: Any = self
        if own.usage:  # the command's own: of a class's, `complaint` says which class
            message = explained(message, own._option_string_actions, getattr(self, "args", None) or ())
        parser.error(message, ex)
        raise AssertionError("parsers are made with exit_on_error=False")


class Parser(Explaining, ArgumentParser):
    """The parser of a command with options of classes."""


def cost(spec: TimestepSpec, options: SamplingOptions, modalities: Mapping[str, Modality], num: int) -> str:
    """What a query costs, in a sentence: evaluations of the network for all its samples, at most."""
    each = options.evaluations_for(spec, {name: row.process for name, row in modalities.items()})
    batches = math.ceil(num / options.batch_size)
    steps = f"{each} in each of {options.steps} steps" if options.steps > 1 else f"{each} in 1 step"
    rows = [steps, f"{batches} batches"][: 1 + (batches > 1)]
    done = counted(each * options.steps * batches, "evaluation")
    return f"{spec}: {done} of the network for {counted(num, 'sample')} ({', '.join(rows)})"


def add_options_of(parser: ArgumentParser, options: type, *, as_group: bool = True) -> None:
    """The options of `SamplingOptions`, or of a class that has more, off its signature; not what only Python can give.

    Args:
        parser: of the command.
        options: a dataclass; its attributes' docstrings explain them.
        as_group: whether the help shows them apart.
    """
    from unidiff_core.sampling.options import PYTHON_ONLY

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_class_arguments(options, skip=set(PYTHON_ONLY), as_group=as_group)
    for name in ("--solver.help", "--guidance.help"):  # that a class may stand there is for YAML
        action: Any = parser._option_string_actions.pop(name)
        action.container._remove_action(action)


def add_precision(parser: ArgumentParser) -> None:
    """``--precision``."""
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16"],
        default="fp32",
        help="What the network computes in; states and solvers stay in fp32. bf16 and fp16 need half of its memory.",
    )


def tidied(parser: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The same arguments as the parser wants them: what has no name first, and a bare flag as a value, ``--x=true``.

    Otherwise argparse gives up an argument that may be left out, once options stand before it.
    """
    named: list[str] = []
    unnamed: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return unnamed + rest + named
        if not word.startswith("-"):
            unnamed.append(word)
            continue
        action = parser._option_string_actions.get(word)
        is_flag = action is not None and action.metavar == "{true,false}" and rest[:1] not in (["true"], ["false"])
        named.append(f"{word}=true" if is_flag else word)
        takes = not rest[:1] or not rest[0].startswith("--") if action is None else action.nargs is None
        if not is_flag and "=" not in word and takes and rest:
            named.append(rest.pop(0))
    return unnamed + named


def check_device(device: str) -> str:
    """The device, if it is there.

    Raises:
        ValueError: if there is none of the name, or it is a GPU and this machine, or this torch, has none.
    """
    import torch

    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device={device}: no such device; give cpu, cuda, cuda:1, mps or xpu") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device={device}: no GPU is to be seen here (torch.cuda.is_available() is False); give cpu")
    return device
