"""Runs `unidiffuser fit` several times in one process: ``torchrun --nproc_per_node=2 tests/fits.py FILE``.

FILE is a JSON list of rows [dtype, argument, …]. One start of two processes serves every comparison of
test_distribution.py. The dtype is that of the weights: Lightning's ModelParallelStrategy refuses precision 64-true.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from unidiff_core.cli.fit import run


def main(path: str) -> None:
    """Fit with each argument list in turn."""
    for dtype, *arguments in json.loads(Path(path).read_text()):
        torch.set_default_dtype(getattr(torch, dtype))
        run(["fit", *arguments])
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
