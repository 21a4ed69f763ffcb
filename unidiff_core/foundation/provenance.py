"""Provenance: with what a result was made: versions, the commit, the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGE = "unidiff-core"
TOLD = (PACKAGE, "torch", "pytorch-lightning", "diffusers", "transformers", "torchmetrics", "numpy")
"""Distributions whose versions are told."""


def provenance() -> dict[str, Any]:
    """As plain data: ``date`` (UTC), ``versions``, ``commit`` where one is known, ``machine``; no host or user."""
    commit = {"commit": found} if (found := commit_of(Path(__file__).parents[1])) else {}
    return {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "versions": versions(), **commit, "machine": machine()}


def versions() -> dict[str, str]:
    """Python's, and those of the distributions that are installed."""
    rows = {"python": platform.python_version()}
    for name in TOLD:
        try:
            rows[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return rows


@cache
def commit_of(package: Path) -> str | None:
    """The commit that a package's code is of; None if it is not known.

    That of its checkout, with ``, changed`` if files of the package are not as committed; else what its installer noted
    (PEP 610). A repository around an installed package, in which it is not tracked, is not its own.
    """
    if _git(package, "ls-files", "__init__.py"):
        commit = _git(package, "rev-parse", "HEAD")
        return f"{commit}, changed" if commit and _git(package, "status", "-s", ".") else commit
    try:
        noted = json.loads(metadata.distribution(PACKAGE).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, json.JSONDecodeError):
        return None
    return noted.get("vcs_info", {}).get("commit_id")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in a folder; None if it refuses, or there is none."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """System, processor with its cores, torch's threads, GPUs if torch sees some."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **({"gpus": gpus} if gpus else {}),
    }


def _processor() -> str:
    """The model's name; on Linux only the kernel knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
