"""``unidiffuser report``: a training's curves as a page, or two evaluated runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unidiff_core.cli.option import PlainParser

DESCRIPTION = """Write a page: of one run its training, of two what their evaluations say beside each other.

Of one run: the losses by stream and by stretch of time, the gradient's norm, the learning rate, samples a second, step
time and wait for data, as its CSV logger wrote them, with the last samples of ShowSamples. The training may still be
running. `unidiffuser evaluate` writes the page of an evaluation, report.html.

Of two runs: the samples of each query beside each other, every metric with its difference and whether the intervals
overlap, the settings that differ, and the curves of both trainings if both have them.

  unidiffuser report runs/digits                  writes runs/digits/training.html
  unidiffuser report runs/digits runs/other       writes runs/digits/comparison.html

A page is one file: it loads nothing from elsewhere and runs no script.
"""
TRAINING, COMPARISON = "training.html", "comparison.html"


def run(argv: Sequence[str]) -> None:
    """Write the page of the runs that `argv` names.

    Raises:
        ValueError: if a run has not what its page shows; says what to do.
    """
    parser = PlainParser("report", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="folder of another run, to compare with")
    parser.add_argument("--out", metavar="FILE", help="the page, if not training.html or comparison.html in RUN")
    options = parser.parse_args(list(argv))
    folder = Path(options.run).expanduser()
    path = Path(options.out or folder / (COMPARISON if options.other else TRAINING)).expanduser()
    if path.is_dir():
        example = path / (COMPARISON if options.other else TRAINING)
        raise ValueError(f"--out={options.out} is a folder; name a file in it, {example} say")
    if options.other:
        from unidiff_core.evaluation.comparison import write_comparison

        print(f"{write_comparison(path, folder, Path(options.other).expanduser())}\n{path}")
    else:
        from unidiff_core.evaluation.history import write_training
        from unidiff_core.evaluation.report import REPORT

        history = write_training(path, folder, links=[REPORT])
        print(f"{len(history.columns)} columns of {len(history.files)} files, to step {history.last}\n{path}")
