"""What the commands' option parsers have in common."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

PARSER_OPTIONS: dict[str, Any] = {
    # ${…} is resolved after the overrides; plain "omegaconf" silently keeps the old value.
    "parser_mode": "omegaconf+",
    # Errors are raised, so that a person reads one paragraph and not the usage of a hundred options.
    "exit_on_error": False,
}
"""Keyword arguments for every jsonargparse parser."""


class PlainParser(argparse.ArgumentParser):
    """The standard library's parser, for commands without a configuration file; its errors are raised too."""

    def error(self, message: str) -> NoReturn:
        """Raise, in place of printing the usage and exiting."""
        raise ValueError(f"{message}. `{self.prog} --help` lists the options.")
