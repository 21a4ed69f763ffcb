"""``unidiffuser``: finds the command, runs it, and turns a user's error into one paragraph and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import linecache
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence

from unidiff_core.cli.warning import tidy_warnings
from unidiff_core.foundation.interrupt import Interrupted, interruptible

COMMANDS = {
    "recipe": ("recipe", "list the recipes, or copy one into the current folder"),
    "shards": ("shards", "write webdataset shards from a registered source of raw samples"),
    "fit-codec": ("fit_codec", "train the networks of a codec on raw shards"),
    "encode": ("encode", "encode raw shards to stored latents"),
    "fit": ("fit", "train a UniDiffuser (Lightning CLI)"),
    "validate": ("fit", "the loss on the validation shards"),
    "test": ("fit", "the loss on the test shards"),
    "sample": ("sample", "sample any marginal, conditional or joint distribution by a timestep spec"),
    "vary": ("vary", "variations: samples through other modalities and back"),
    "chain": ("chain", "specs in turn, each on what those before left: blocked Gibbs sampling"),
    "inpaint": ("inpaint", "part of a sample anew, given the rest of it: inpainting and outpainting"),
    "interpolate": ("interpolate", "what lies between two samples"),
    "evaluate": ("evaluate", "judge samples of many queries; writes evaluation.json and report.html"),
    "demo": ("demo", "a page to play with a model, in the browser"),
    "report": ("report", "a page of a training's curves, or of two evaluated runs beside each other"),
    "convert": ("convert", "read weights in another layout, such as the released ones, into a model directory"),
    "export": ("export", "write a model directory in another layout"),
    "verify": ("verify", "say of files whether they carry a codec's mark"),
    "push": ("push", "upload a model directory to the Hugging Face hub"),
    "new-codec": ("new_codec", "write a small distribution with a codec of your own, to begin from"),
    "list": ("list", "list what is registered: codecs, sources, processes, solvers, backbones, metrics, ..."),
}
"""Command → its module and what it does."""
ALIASES = {"codecs": ["list", "codecs"]}
"""Command → what it stands for."""
AGAIN = {
    "": "what it had written before is whole",
    "encode": "the same command goes on with the first shard that is not there",
    "evaluate": "the same command draws only what is missing",
    "fit": "the same command begins where the last checkpoint is, or anew",
    "fit-codec": "the same command goes on from the last whole epoch",
    "shards": "the same command writes the split that is not complete again",
}
"""Command → what a person is told who interrupts it."""
SPIN = "1000"
"""Rounds that a thread spins while it waits for others of its team. The usual 300,000 take the processor from the very
threads that are waited for, once other jobs run beside: two threads then are ten times slower than one."""
OF_A_PATH = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Errors of the system whose cause is a path that the user gave: they need no number."""
REFUSING = ("pytorch_lightning.", "lightning_fabric.", "torch.optim.")
"""Modules whose own errors, of whatever type, are about the trainer's and the optimizer's options."""


def help_text() -> str:
    """What ``unidiffuser --help`` prints."""
    rows = "\n".join(f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items())
    return f"""usage: unidiffuser COMMAND [options]

One transformer learns every marginal, conditional and joint distribution of N modalities.

commands, in the order of a recipe:
{rows}

`unidiffuser COMMAND --help` explains a command. `--traceback` before the command shows where an error came from.

  unidiffuser fit -c recipes/digits/fit.yaml --trainer.max_steps=100 --trainer.default_root_dir=runs/look
  unidiffuser sample runs/digits "image | text" --given text="a red seven" --num 16 --guidance 2 --out out/
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exits 2 with a paragraph on stderr if the user's input is wrong."""
    try:
        _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does the interpreter's end complain
        sys.exit(128 + signal.SIGPIPE)


def _run(arguments: Sequence[str] | None) -> None:
    argv = list(sys.argv[1:] if arguments is None else arguments)
    shows_traceback = "--traceback" in argv[:1]
    argv = argv[shows_traceback:]
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text(), end="")
        return
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"unidiffuser {version('unidiff-core')}")
        return
    argv = ALIASES.get(argv[0], argv[:1]) + argv[1:]
    if argv[0] not in COMMANDS:
        from unidiff_core.foundation.error import meant

        rest = meant(argv[0], COMMANDS, then=f"known: {', '.join(COMMANDS)}")
        fail(f"unknown command {argv[0]!r}{rest}.")
    os.environ.setdefault("WDS_SECURE", "1")
    if (
        "OMP_WAIT_POLICY" not in os.environ
    ):  # before torch is loaded: threads that wait for each other give way to others
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    tidy_warnings()
    try:
        with interruptible():
            module = importlib.import_module(f"unidiff_core.cli.{COMMANDS[argv[0]][0]}")
            module.run(argv if COMMANDS[argv[0]][0] == "fit" else argv[1:])
    except Interrupted as stop:
        said = f"interrupted; {AGAIN.get(argv[0], AGAIN[''])}" if stop.said is None else stop.said
        if said:
            print(f"\nunidiffuser {argv[0]}: {said}", file=sys.stderr)
        sys.exit(stop.code)
    except BrokenPipeError:
        raise
    except Exception as error:
        if shows_traceback or not (message := sentence_of(error, argv[0])):
            raise
        fail(message)


def sentence_of(error: Exception, command: str) -> str | None:
    """What the user of a command is told of an error: of a wrong option, or see `explanation`."""
    if isinstance(error, argparse.ArgumentError):
        from unidiff_core.cli.complaint import readable

        return f"{readable(str(error))} `unidiffuser {command} --help` lists the options."
    return explanation(error)


def explanation(error: Exception) -> str | None:
    """What to tell the user of an error of theirs or of a plugin's; None if it is ours."""
    from unidiff_core.foundation.error import reason, sentence
    from unidiff_core.foundation.plugin import culprit

    distribution = culprit(error)
    if distribution is None and not isinstance(error, (ValueError, OSError)) and not _is_lightnings(error):
        return None
    if _is_lightnings(error):
        return sentence(str(error))
    if isinstance(error, OF_A_PATH) and error.strerror and error.filename is not None and error.filename2 is None:
        message = f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    else:
        message = str(error) or type(error).__name__ if isinstance(error, OSError) else reason(error)
    if message.startswith("Does not validate against"):  # what a parser says of what a class refused
        from unidiff_core.cli.complaint import readable

        message = readable(message)
    if distribution is None or distribution in message:
        return message
    return f"{sentence(message)} It came from the plugin {distribution}; `--traceback` shows where."


def _is_lightnings(error: Exception) -> bool:
    """Whether Lightning, or an optimizer of torch, raised it on purpose: it refuses what it was configured with."""
    if type(error).__name__ == "MisconfigurationException":
        return True
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    raised = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")
    return raised and frame.f_globals.get("__name__", "").startswith(REFUSING)


def fail(message: str) -> None:
    """Print an error as one paragraph and exit with code 2."""
    text = " ".join(message.split())
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    print(textwrap.fill(f"unidiffuser: {text}", width, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
