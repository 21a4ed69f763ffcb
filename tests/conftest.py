from __future__ import annotations

import signal

import pytest


@pytest.fixture
def heard():
    """Ctrl-C is heard, as on a terminal; whoever runs in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def install(tmp_path):
    """Install distributions into a folder, as an installer would: their files, and metadata beside them."""
    folder = tmp_path / "site-packages"

    def install(distribution, points, files=()):
        metadata = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        rows = "".join(f"{name} = {module}\n" for name, module in points.items())
        (metadata / "entry_points.txt").write_text(f"[unidiff]\n{rows}")
        for name, text in dict(files).items():
            (folder / name).write_text(text)
        return folder

    return install
