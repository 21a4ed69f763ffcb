"""Commands in processes of their own, forked from one that has imported everything: Python's start is paid once.

A fork is a real process: its own working folder, its own exit code, its own output at the level of the system's files.
What a fresh interpreter would do otherwise (imports, `--help` without torch) has tests of its own.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from multiprocessing.util import _run_after_forkers
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unidiff_core.cli.main import main
from unidiff_core.foundation.plugin import load_plugins

TIMEOUT = 300


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run_command(*arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
    """Run ``unidiffuser`` with these arguments.

    Args:
        *arguments: as on the command line.
        cwd: working folder; this one if not given.
        env: variables in place of this process's.
    """
    load_plugins()  # here, so that no fork imports them
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = os.fork()
        if process == 0:
            _be_the_command([str(row) for row in arguments], out.fileno(), err.fileno(), cwd, env or {})
        code = _wait(process)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        return Done(code, *texts)


def _wait(process: int) -> int:
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, 9)
    os.waitpid(process, 0)
    raise TimeoutError(f"the command did not end within {TIMEOUT} s")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _be_the_command(arguments: list[str], out: int, err: int, cwd: Path | None, env: Mapping[str, str]) -> None:
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
        logging.getLogger().handlers.clear()  # pytest's own
        warnings.resetwarnings()
        warnings.showwarning = _show_warning  # in place of pytest's, which records them
        warnings.filters.insert(0, ("ignore", None, DeprecationWarning, None, 0))  # type: ignore[attr-defined]
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        _run_after_forkers()  # nor does the thread that hands tensors of workers on, which another test may have begun
        os.environ.update({"COLUMNS": "200", "HF_HUB_OFFLINE": "1", **env})
        sys.path[:0] = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]
        os.chdir(cwd or ".")
        sys.argv = ["unidiffuser", *arguments]
        main(arguments)
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
