"""``unidiffuser demo``: a page to play with a model, in the browser."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from unidiff_core.cli.option import PlainParser, check_device

DESCRIPTION = """Serve a page on which a model samples what is asked of it, with what is given.

Each modality is generated, given (clean, or at a time of its noise) or ignored; its codec says how a value is given.
Clean estimates are shown while it samples, and under each result stands the same call for the command line and for
Python. Several people may ask at once: one after the other has the model.

  unidiffuser demo runs/digits                   http://127.0.0.1:7860, for this machine alone
  unidiffuser demo runs/digits --port 8000

The page loads nothing from elsewhere, and nothing of it is sent elsewhere. It needs Gradio:
pip install 'unidiff-core[demo]'
"""
LOCAL = "127.0.0.1"


def run(argv: Sequence[str]) -> None:
    """Load the model and serve the page until it is interrupted.

    Raises:
        ValueError: if Gradio is not installed, the port is taken, or there is no such model.
    """
    parser = PlainParser("demo", DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="model directory, as `unidiffuser fit` writes it")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at (default: 7860)")
    parser.add_argument("--host", default=LOCAL, help=f"address to listen at (default: {LOCAL}, this machine alone)")
    parser.add_argument("--weights", choices=["ema", "model"], default="ema", help="averaged weights, or the last ones")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the network")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--allow_hub", action="store_true", help="let codecs fetch weights by hub id")
    options = parser.parse_args(list(argv))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported
    try:
        import gradio  # noqa: F401 — before the model is loaded
    except ImportError as error:
        raise ValueError(f"the page needs Gradio ({error}): pip install 'unidiff-core[demo]'") from error
    check_port(options.host, options.port)

    from unidiff_core.cli.main import sentence_of
    from unidiff_core.cli.page.layout import launch
    from unidiff_core.cli.page.play import Player
    from unidiff_core.system import UniDiffuser

    model = UniDiffuser.from_pretrained(
        options.model, weights=options.weights, allow_hub=options.allow_hub, precision=options.precision
    ).to(check_device(options.device))
    loading = {name: getattr(options, name) for name in ("weights", "precision", "allow_hub")}
    said = {name: value for name, value in loading.items() if value != parser.get_default(name)}
    player = Player(model, options.model, sentence_of, said, options.device)
    print(f"http://{options.host}:{options.port} (Ctrl-C ends it)", flush=True)
    launch(player, options.host, options.port)


def check_port(host: str, port: int) -> None:
    """Check that an address can be listened at.

    Raises:
        ValueError: if not; says why.
    """
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"cannot listen at {host}, --port={port}: {getattr(error, 'strerror', None) or error}; name another"
            ) from error
