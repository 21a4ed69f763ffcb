"""Commands one after the other, in a process that may reach no network and knows no hub's cache: ``python offline.py``.

Its argument is a file of JSON: a list of command lines. What is tried nevertheless ends it with exit code 9.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

NAMES = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
ADDRESSES = {"socket.connect", "socket.sendto", "socket.sendmsg"}


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """End the process where it looks for a host, or connects to anything but a socket of this machine's files."""
    if event in NAMES or (event in ADDRESSES and arguments[0].family != socket.AF_UNIX):
        os.write(2, f"the network is asked for: {event} {arguments[1:]}\n".encode())
        os._exit(9)


if __name__ == "__main__":
    os.environ.pop("HF_HUB_OFFLINE", None)
    sys.addaudithook(watch)
    from unidiff_core.cli.main import main

    for command in json.loads(Path(sys.argv[1]).read_text()):
        main(command)
