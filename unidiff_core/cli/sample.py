"""``unidiffuser sample``: any marginal, conditional or joint distribution by a timestep spec."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from unidiff_core.cli.call import (
    LATENTS,
    add_given,
    add_model,
    check_out,
    given_of,
    load_model,
    parsed,
    parser_of,
    read_latents,
    sampling_of,
    steps_of,
    tell_idle,
    write,
    write_latents,
)
from unidiff_core.cli.option import MODEL, Parser, cost
from unidiff_core.foundation.argument import check_whole
from unidiff_core.foundation.inline import read_inline
from unidiff_core.foundation.progress import progress

USAGE = "unidiffuser sample MODEL [SPEC] [--given NAME=VALUE] [options]"
DESCRIPTION = """Sample from a model directory what a timestep spec solves.

A spec in text names what to solve, and behind a bar what to hold; what it does not name is ignored:

  "image"                marginal                   "image, text"           joint
  "image | text"         image given text           "image | text@0.3"      given text noised to 0.3
  "image@0.6 | text"     a given image noised to 0.6 and solved again (SDEdit)

A spec in braces is a mapping, for any path: '{text: [[0, 1], [0.5, 0]], image: [[0.5, 1], [1, 0]]}' solves text first,
then the image; [start, end] is a solved path, a number a held time, 0 is clean and 1 is noise.

  unidiffuser sample runs/digits "image | text" --given text="a red seven" --num 16 --guidance 2 --out out/
  unidiffuser sample runs/digits "text | image" --given image=some.png

Guidance leads away from noise; --against text="a two" leads away from a two, and --empty text from a caption without
words, if the network was trained with such. A large scale drives estimates out of the data's range: --guidance_rescale
takes back what it adds to their spread, --threshold is for data that has a range, --guidance_interval leaves early and
late steps alone:

  unidiffuser sample runs/digits "image | text" --given text="a red seven" --guidance 8 --guidance_rescale 0.7 \\
    --guidance_interval "[0.2, 0.9]" --against text="a two drawn in red on black"

Latents go in and out as safetensors files, one tensor for each stream: --latents writes what is sampled so, --given
NAME=FILE.safetensors gives it, and --states starts a path from it. So an inversion comes back:

  unidiffuser sample runs/digits --spec '{image: [0, 1]}' --given image=some.png --latents --out noise/
  unidiffuser sample runs/digits "image" --states noise/latents.safetensors
"""


def _parser() -> Parser:
    parser = parser_of("sample", USAGE, DESCRIPTION)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help=MODEL)
    add("text_spec", nargs="?", type=str, metavar="SPEC", help="Timestep spec; a mapping stands in braces.")
    add("--spec", type=str, metavar="MAPPING", help="The same, for a mapping alone (YAML).")
    add_given(parser)
    add(
        "--against",
        action="append",
        type=str,
        default=[],
        metavar="NAME=VALUE",
        help="A value of what is held that guidance leads away from, in place of noise. Repeatable.",
    )
    add("--states", type=Path | None, default=None, metavar="FILE", help="Latents at the start of their paths.")
    add("--latents", action="store_true", help="Write latents.safetensors, and decode nothing.")
    add_model(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse the options, sample, write."""
    parser = _parser()
    options = parsed(parser, argv)
    if options.spec is None and options.text_spec is None:
        raise ValueError('nothing to sample: give a spec, like "image | text", or --spec with a mapping')
    if options.spec is not None and options.text_spec is not None:
        raise ValueError("give SPEC or --spec, not both")
    spec = options.text_spec if options.spec is None else read_inline(options.spec, "--spec")

    from unidiff_core.foundation.latents import modality_of
    from unidiff_core.sampling.spec import TimestepSpec

    model = load_model(options)
    sampling = sampling_of(options, model)
    timestep_spec = TimestepSpec.parse(spec, model.modalities)
    given, against = given_of(options.given, model), given_of(options.against, model, "--against")
    states = read_latents(options.states, model) if options.states else {}
    names = [{*map(modality_of, row)} for row in (given, states, against)]
    timestep_spec.check_supplied(*names)
    if options.num is None:
        num = max([1, *map(len, given.values()), *map(len, states.values())])
    else:
        num = options.num
        check_whole("num", num, at_least=1)
    print(cost(timestep_spec, sampling, model.modalities, num), file=sys.stderr, flush=True)
    check_out(options.out, () if options.latents else timestep_spec.solved, [LATENTS] if options.latents else ())
    tell_idle([timestep_spec], sampling, options)
    steps = steps_of(sampling, num)
    with progress(f"sample {timestep_spec}", steps, "steps", transient=True) as show:
        solved = model.sample(
            timestep_spec,
            given,
            options.num,
            options=sampling,
            on_step=lambda report: show(report.step, scale=num / steps),
            latents=options.latents,
            states=states,
            against=against,
        )
    if options.latents:
        write_latents(solved, options.out)
    else:
        write(model, solved, options.out)
