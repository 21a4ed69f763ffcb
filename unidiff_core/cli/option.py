"""What the commands' option parsers have in common."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples."""


PARSER_OPTIONS: dict[str, Any] = {
    # ${…} is resolved after the overrides; plain "omegaconf" silently keeps the old value.
    "parser_mode": "omegaconf+",
    # Errors are raised, so that a person reads one paragraph and not the usage of a hundred options.
    "exit_on_error": False,
    "formatter_class": HelpFormatter,
}
"""Keyword arguments for every jsonargparse parser."""


def named(command: str, description: str, *, takes_directory: bool = False) -> dict[str, Any]:
    """Keyword arguments for the parser of a command that a YAML file configures."""
    usage = f"unidiffuser {command} {'DIRECTORY ' if takes_directory else ''}-c CONFIG.yaml [--OPTION=VALUE ...]"
    return PARSER_OPTIONS | {"prog": f"unidiffuser {command}", "usage": usage, "description": description}


class PlainParser(argparse.ArgumentParser):
    """The standard library's parser, for commands without a configuration file; its errors are raised too."""

    def error(self, message: str) -> NoReturn:
        """Raise, in place of printing the usage and exiting."""
        raise ValueError(f"{message}. `{self.prog} --help` lists the options.")


def add_sampling_options(parser: ArgumentParser) -> None:
    """The options of `SamplingOptions`, off its signature; what only Python can give is left out."""
    from unidiff_core.sampling.options import SamplingOptions

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_class_arguments(SamplingOptions, skip=set(PYTHON_ONLY))


PYTHON_ONLY = ("constrain",)
"""Options of sampling that no text can say."""
