"""``unidiffuser vary``: samples through other modalities and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unidiff_core.cli.call import add_given, add_model, given_of, load_model, parsed, parser_of, sampling_of
from unidiff_core.cli.option import MODEL, Parser

USAGE = 'unidiffuser vary MODEL "NAME > NAME > NAME" --given NAME=VALUE [options]'
DESCRIPTION = """Variations: a sample goes through other modalities and back, and what they tell of it stays.

  "image > text > image"           images that the same text would describe
  "text > image > text"            texts of the same image
  "image > text, audio > image"    through two modalities at once; a station is what stands between two arrows

Each arrow is a conditional, "text | image" and "image | text" here, and latents are passed on without decoding. What is
at the last station is written, and film.html shows every station, a row for each sample.

  unidiffuser vary runs/digits "image > text > image" --given image=seven.png --num 8 --guidance 2 --out varied/
"""


def _parser() -> Parser:
    parser = parser_of("vary", USAGE, DESCRIPTION)
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    parser.add_argument("cycle", type=str, metavar="CYCLE", help="Stations with arrows (> or ->) between them.")
    add_given(parser)
    add_model(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse the options, go through the stations, write."""
    options = parsed(_parser(), argv)

    from unidiff_core.application.variation import specs_of
    from unidiff_core.cli.chain import run_chain

    model = load_model(options)
    run_chain(
        model, specs_of(options.cycle), given_of(options.given, model), options, sampling_of(options, model), "vary"
    )
