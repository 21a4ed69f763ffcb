"""``unidiffuser fit|validate|test``: Lightning's CLI over `UniDiffuser`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning import LightningDataModule
from pytorch_lightning.cli import ArgsType, LightningCLI

from unidiff_core.plugin import load_plugins
from unidiff_core.system import UniDiffuser


class UniDiffuserCLI(LightningCLI):
    """Lightning's CLI with plugins loaded first, so that their classes are known by short name."""

    def __init__(self, args: ArgsType) -> None:
        super().__init__(
            UniDiffuser,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=None,  # the model directory records the configuration
            seed_everything_default=0,
            # "omegaconf+" resolves ${…} after the overrides; plain "omegaconf" silently keeps the old value.
            parser_kwargs={"parser_mode": "omegaconf+"},
            auto_configure_optimizers=False,
            args=args,
        )

    def before_fit(self) -> None:
        """A run resumes from its own newest checkpoint, or starts."""
        arguments = self.config["fit"]
        _refuse_url(arguments.get("ckpt_path"))


def _refuse_url(path: str | None) -> None:
    if path and "://" in str(path):
        raise ValueError(f"--ckpt_path={path}: checkpoints are not read from URLs; download it and give the path")
    if path and path not in ("last", "best") and not Path(path).is_file():
        raise ValueError(f"--ckpt_path={path}: no such file")


def run(argv: Sequence[str]) -> None:
    """Run one of Lightning's subcommands."""
    load_plugins()
    # What Lightning says about few workers and small logs is advice for other programs.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*log_every_n_steps.*")
    warnings.filterwarnings("ignore", '.*ckpt_path="last".*')
    UniDiffuserCLI(list(argv))
