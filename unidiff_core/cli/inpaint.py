"""``unidiffuser inpaint``: part of a sample is sampled anew, given the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unidiff_core.cli.call import (
    add_given,
    add_model,
    check_out,
    given_of,
    load_model,
    named_value,
    parsed,
    parser_of,
    sampling_of,
    tell_idle,
    write,
)
from unidiff_core.cli.option import MODEL, Parser
from unidiff_core.foundation.inline import read_inline
from unidiff_core.foundation.progress import progress

USAGE = "unidiffuser inpaint MODEL SPEC --given NAME=VALUE --region NAME=REGION [--outside] [options]"
DESCRIPTION = """Inpainting: a region of what is given is sampled, and the rest is kept. --outside is outpainting.

SPEC says what is solved and what is held, as for `sample`; each value with a region is of something that it solves. A
region is what the modality's codec takes: of an image a box [left, top, right, bottom] in pixels of the codec's square,
or the path of a picture that is light where it is to be sampled; of a text a word of it, or [several, words]; of a
sound a stretch [from, to] in seconds; of any codec ranges of its streams' grids, {ae: [[0, 4], [2, 6]]}.

  unidiffuser inpaint runs/digits "image | text" --given image=seven.png --given text="a red seven" \\
      --region image="[0, 16, 32, 32]" --num 4 --resamples 5
  unidiffuser inpaint runs/digits "image" --given image=seven.png --region image="[8, 8, 24, 24]" --outside
  unidiffuser inpaint runs/digits "image@0.6 | text" --given image=seven.png --given text="a red nine" \\
      --region image="[0, 16, 32, 32]"
  unidiffuser inpaint runs/digits_tokens "text | image" --given image=seven.png --given text="a red seven" \\
      --region text=red

Numbers (images, sounds, CLIP's states of a text) are put back as noisy as the time is, after each step. That is biased:
the new part agrees less with the kept one than it should. --resamples goes through each tenth of the path so often,
noised afresh, which costs as much more and lessens it. A start below 1 (image@0.6) changes what is in the region, in
place of drawing it anew; --kept_at 0.2 puts back no longer below 0.2, where the rest is sampled along: it then comes
back nearly, and agrees with the region. Symbols of the masked process are sampled exactly.
"""


def _parser() -> Parser:
    parser = parser_of("inpaint", USAGE, DESCRIPTION)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help=MODEL)
    add("text_spec", type=str, metavar="SPEC", help="Timestep spec; a mapping in braces.")
    add(
        "--region",
        action="append",
        type=str,
        default=[],
        metavar="NAME=REGION",
        help="What is sampled of a given value. Repeatable.",
    )
    add("--outside", action="store_true", help="Sample what is outside of the regions, and keep them.")
    add("--resamples", type=int, default=1, help="How often each tenth of the path is gone through.")
    add("--kept_at", type=float, default=0.0, help="Time below which what is kept is no longer put back, 0 to 1.")
    add_given(parser)
    add_model(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse the options, sample, write."""
    options = parsed(_parser(), argv)

    from unidiff_core.application.inpainting import inpaint
    from unidiff_core.sampling.spec import TimestepSpec

    model = load_model(options)
    sampling = sampling_of(options, model)
    spec = TimestepSpec.parse(options.text_spec, model.modalities)
    check_out(options.out, spec.solved)
    tell_idle([spec], sampling, options)
    regions = {}
    for row in options.region:
        name, value = named_value(row, "--region", model)
        regions[name] = read_inline(value, f"the --region of {name!r},")
    with progress("inpaint", 100, "percent", transient=True) as show:
        solved = inpaint(
            model,
            spec,
            given_of(options.given, model),
            regions,
            options.num,
            outside=options.outside,
            resamples=options.resamples,
            kept_at=options.kept_at,
            options=sampling,
            on_step=lambda report: show(100 * report.step / report.steps, scale=0),
        )
    write(model, solved, options.out)
