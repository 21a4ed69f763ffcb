"""Models as repositories: fetched from a stand-in for the hub on this machine, and laid out to be uploaded."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml

from tests.core.tiny import make, weights
from unidiff_core import UniDiffuser
from unidiff_core.cli.main import main
from unidiff_core.serialization.card import MARK
from unidiff_core.serialization.hub import push, repository
from unidiff_core.serialization.model_directory import ModelDirectoryError

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def directory(tmp_path):
    make().save_pretrained(tmp_path / "run")
    (tmp_path / "run/evil.py").write_text("raise SystemExit")
    (tmp_path / "run/evil.bin").write_bytes(b"a pickle")
    return tmp_path / "run"


@pytest.fixture
def hub(directory, tmp_path, monkeypatch):
    """Serves `directory` as me/tiny; gives the paths that were asked for."""
    from huggingface_hub import constants

    asked = []
    files = {path.name: path.read_bytes() for path in directory.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            name = self.path.partition("?")[0].rpartition("/")[2]
            if "/api/models/me/tiny/tree/" in self.path:
                rows = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
                self.reply(json.dumps(rows).encode())
            elif "/api/models/me/tiny" in self.path:
                siblings = [{"rfilename": name} for name in files]
                self.reply(json.dumps({"id": "me/tiny", "sha": "1" * 40, "siblings": siblings}).encode())
            elif "/me/tiny/resolve/" in self.path and name in files:
                self.reply(files[name])
            else:
                self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def reply(self, data):
            self.send_response(200)
            headers = {"Content-Length": len(data), "ETag": hashlib.sha256(data).hexdigest(), "X-Repo-Commit": "1" * 40}
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix("https://huggingface.co")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield asked
    server.shutdown()


def test_a_repository_is_a_model_directory_where_that_is_allowed(directory, hub, monkeypatch, tmp_path):
    with pytest.raises(ModelDirectoryError, match=r"me/tiny.*allow_hub"):
        UniDiffuser.from_pretrained("me/tiny")
    assert not hub
    model = UniDiffuser.from_pretrained("me/tiny", allow_hub=True)
    assert torch.equal(weights(model), weights(UniDiffuser.from_pretrained(directory)))
    assert not any("evil" in path for path in hub)  # no pickle, no code
    shutil.copytree(directory, tmp_path / "here/me/tiny")
    monkeypatch.chdir(tmp_path / "here")
    hub.clear()
    UniDiffuser.from_pretrained("me/tiny", allow_hub=True)  # a folder comes first
    assert not hub


def test_a_repository_that_there_is_not_is_one_sentence(hub):
    with pytest.raises(ModelDirectoryError, match="cannot fetch hf-hub:me/other"):
        UniDiffuser.from_pretrained("hf-hub:me/other", allow_hub=True)


def test_what_is_uploaded_is_a_model_directory_of_its_own(directory, monkeypatch, tmp_path):
    from huggingface_hub import HfApi

    calls = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **more: calls.append((name, more)))

    def upload(self, *, repo_id, folder_path, **more):
        calls.append(repo_id)
        shutil.copytree(folder_path, tmp_path / "there")

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert push(directory, "me/tiny", private=True, datasets=["me/data"]).endswith("/me/tiny")
    assert calls == [("me/tiny", {"private": True, "exist_ok": True}), "me/tiny"]
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [
        "README.md",
        "config.yaml",
        "model.safetensors",
    ]
    assert torch.equal(
        weights(UniDiffuser.from_pretrained(tmp_path / "there")), weights(UniDiffuser.from_pretrained(directory))
    )
    text = (tmp_path / "there/README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "unidiff" and front["datasets"] == ["me/data"] and {"a", "b"} <= {*front["tags"]}
    assert "# me/tiny\n" in text and 'from_pretrained("me/tiny", allow_hub=True)' in text


def test_a_dry_run_lists_the_files_and_contacts_nobody(directory, hub, capsys):
    main(["push", str(directory), "me/tiny", "--dry_run"])
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == [
        "README.md", "config.yaml", "model.safetensors",
    ]  # fmt: skip
    assert not hub
    with pytest.raises(SystemExit):
        main(["push", str(directory), "tiny", "--dry_run"])
    assert "'tiny' is no name of a repository; write user/name" in capsys.readouterr().err


def test_weights_of_codecs_come_along_from_outside_if_that_is_allowed(directory, tmp_path):
    (tmp_path / "elsewhere/ae").mkdir(parents=True)
    for name in ("config.json", "weights.safetensors", "weights.bin", "notes.png"):
        (tmp_path / "elsewhere/ae" / name).write_text(name)
    path = directory / "config.yaml"
    config = yaml.safe_load(path.read_text())
    codec = {"class": "ImageCodec", "autoencoder": "../elsewhere/ae", "clip": "hf-hub:some/clip"}
    config["modalities"]["a"]["codec"] = codec
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ModelDirectoryError, match=r"outside of .*--allow_outside"), repository(directory, "me/tiny"):
        pass
    with repository(directory, "me/tiny", allow_outside=True) as folder:
        found = yaml.safe_load((folder / "config.yaml").read_text())["modalities"]["a"]["codec"]
        assert found == codec | {"autoencoder": "codecs/ae"}
        assert sorted(row.name for row in (folder / "codecs/ae").iterdir()) == ["config.json", "weights.safetensors"]
    shutil.rmtree(tmp_path / "elsewhere")
    with (
        pytest.raises(ModelDirectoryError, match="no such folder"),
        repository(directory, "me/tiny", allow_outside=True),
    ):
        pass


def test_a_page_of_the_users_own_is_not_written_over(directory):
    page = directory / "README.md"
    assert page.read_text().rstrip().endswith(MARK)
    page.write_text("mine")
    make().save_pretrained(directory, overwrite=True)
    assert page.read_text() == "mine"
