"""What a result was made with."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from unidiff_core.foundation import provenance as module
from unidiff_core.foundation.provenance import commit_of, machine, provenance, versions


@pytest.fixture
def checkout(tmp_path):
    """A repository with a package in it, and what runs git there."""

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x.x", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git("add", "package")
    git("commit", "-q", "-m", "first")
    return package, git


def test_the_commit_of_a_checkout_and_whether_it_was_changed(checkout):
    package, git = checkout
    head = git("rev-parse", "HEAD")
    assert len(head) == 40 and commit_of(package) == head
    (package.parent / "notes.txt").write_text("beside the package: not its code")
    commit_of.cache_clear()
    assert commit_of(package) == head
    (package / "__init__.py").write_text("1")
    commit_of.cache_clear()
    assert commit_of(package) == f"{head}, changed"


def test_a_repository_around_an_installed_package_is_not_its_own(checkout, monkeypatch):
    package, _ = checkout
    installed = package.parent / ".venv/unidiff_core"
    shutil.copytree(package, installed)
    noted = {"vcs_info": {"commit_id": "abc"}}

    class Distribution:
        def read_text(self, name):
            return json.dumps(noted) if name == "direct_url.json" else None

    monkeypatch.setattr(module.metadata, "distribution", lambda name: Distribution())
    assert commit_of(installed) == "abc"
    noted.clear()
    commit_of.cache_clear()
    assert commit_of(installed) is None


def test_without_git_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path) is None


def test_versions_and_machine():
    assert versions()["torch"] == torch.__version__.partition("+")[0] or versions()["torch"] == torch.__version__
    assert machine()["threads"] == torch.get_num_threads() and machine()["processor"]
    found = json.loads(json.dumps(provenance()))
    assert {"date", "versions", "machine"} <= set(found)
    assert "unidiff-core" in found["versions"] and Path.home().name not in json.dumps(found["machine"]).split()
