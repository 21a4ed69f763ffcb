"""Lightning's parser, whose errors say what was meant."""

from __future__ import annotations

from pytorch_lightning.cli import LightningArgumentParser

from unidiff_core.cli.option import Explaining


class TrainingParser(Explaining, LightningArgumentParser):
    """The parser of a command that trains."""
