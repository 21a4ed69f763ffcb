"""``unidiffuser interpolate``: what lies between two samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unidiff_core.cli.call import (
    FILM,
    add_model,
    check_out,
    given_of,
    load_model,
    parsed,
    parser_of,
    sampling_of,
    tell_idle,
)
from unidiff_core.cli.chain import write_moments
from unidiff_core.cli.option import MODEL, Parser
from unidiff_core.foundation.progress import progress

USAGE = "unidiffuser interpolate MODEL NAME --start NAME=VALUE --end NAME=VALUE [--through NAME,...] [options]"
DESCRIPTION = """Interpolation between two samples, as the paper describes it.

The solver runs backwards from each sample to its noise, the noises are interpolated along a sphere, and the solver runs
forwards from each place between. --through text: both ways given a text of each, sampled from one noise for both, which
is interpolated too. The first and the last frame are the two samples as they come back: with 100 steps to 1e-3 of them.

  unidiffuser interpolate runs/digits image --start image=two.png --end image=seven.png --through text --steps 100
  unidiffuser interpolate runs/digits image --start image=two.png --end image=seven.png        the noises alone
  unidiffuser interpolate runs/digits image --through text --start image=two.png --start text="a red two" \\
      --end image=seven.png --end text="a blue seven"                                          with texts of yours

Solvers are to be without fresh noise (dpmpp_2m, dpmpp_3m, heun, ddim). Guidance is on in both directions, if it is on.
Symbols have nothing between them: what has a process over symbols is refused.
"""


def _parser() -> Parser:
    parser = parser_of("interpolate", USAGE, DESCRIPTION)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help=MODEL)
    add("name", type=str, metavar="NAME", help="The modality.")
    for end in ("start", "end"):
        add(
            f"--{end}",
            action="append",
            type=str,
            default=[],
            metavar="NAME=VALUE",
            help=f"The value at the {end}, and what is given of it --through: --{end} image=a.png --{end} text=... "
            "Repeatable; several values of one name are several pairs.",
        )
    add(
        "--through",
        type=str,
        default="",
        metavar="NAMES",
        help="Modalities, with commas between, by which the two are sampled, as image by text.",
    )
    add("--frames", type=int, default=7, help="Places on the way, both ends among them.")
    add_model(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse the options, interpolate, write."""
    options = parsed(_parser(), argv)

    from unidiff_core.application.interpolation import interpolate
    from unidiff_core.sampling.spec import TimestepSpec

    model = load_model(options)
    sampling = sampling_of(options, model)
    ends = given_of(options.start, model, "--start"), given_of(options.end, model, "--end")
    through = [name.strip() for name in options.through.split(",") if name.strip()]
    spec = TimestepSpec.parse(" | ".join([options.name, *[", ".join(through)] * bool(through)]), model.modalities)
    check_out(options.out, [options.name, *through], [FILM])
    tell_idle([spec], sampling, options)
    with progress(f"interpolate {options.name}", 100, "percent", transient=True) as show:
        moments = interpolate(
            model,
            options.name,
            ends,
            through=through,
            frames=options.frames,
            options=sampling,
            on_step=lambda report: show(100 * report.step / report.steps, scale=0),
        )
    write_moments(model, moments, options.out, "interpolate")
