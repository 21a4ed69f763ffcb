"""``unidiffuser chain``: one spec after the other, each on what those before have left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiff_core.cli.call import (
    FILM,
    add_given,
    add_model,
    check_out,
    given_of,
    load_model,
    parsed,
    parser_of,
    sampling_of,
    steps_of,
    tell_idle,
    write,
)
from unidiff_core.cli.option import MODEL, Output, Parser
from unidiff_core.foundation.error import counted
from unidiff_core.foundation.latents import modality_of
from unidiff_core.foundation.progress import progress

if TYPE_CHECKING:
    from unidiff_core.application.moment import Moment
    from unidiff_core.sampling.options import SamplingOptions
    from unidiff_core.system import UniDiffuser

USAGE = 'unidiffuser chain MODEL "SPEC" "SPEC" ... [--given NAME=VALUE] [--rounds N] [options]'
DESCRIPTION = """Chains: specs in turn, each of which replaces what it solves and passes it on as latents.

Two conditionals in alternation are blocked Gibbs sampling: the pairs come to be of the joint distribution. Any
alternation will do, and any specs in it, noisy conditions and starts below pure noise among them:

  "text | image" "image | text"                        from a given image
  "image" "text | image" "image | text"                from nothing: the first image is of the marginal
  "text | image" "image@0.6 | text@0.2"                small moves
  "image, text | audio" "audio | image, text"          two blocks of three modalities

A spec in braces is a mapping, '{image: [1, 0], text: {hold: [0.5, 0]}}' (see `unidiffuser sample --help`). Each link
has a seed of its own. What was solved last is written, and film.html shows every link, a row for each chain.

  unidiffuser chain runs/digits "text | image" "image | text" --given image=seven.png --rounds 4 --num 6 --out chain/
"""


def _parser() -> Parser:
    parser = parser_of("chain", USAGE, DESCRIPTION)
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    parser.add_argument("specs", nargs="+", type=str, metavar="SPEC", help="Timestep specs, in the order of the links.")
    parser.add_argument("--rounds", type=int, default=1, help="How often the specs are gone through.")
    add_given(parser)
    add_model(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse the options, go through the links, write."""
    options = parsed(_parser(), argv)
    model = load_model(options)
    run_chain(
        model,
        options.specs,
        given_of(options.given, model),
        options,
        sampling_of(options, model),
        "chain",
        options.rounds,
    )


def run_chain(
    model: UniDiffuser,
    specs: Sequence[Any],
    given: Mapping[str, Any],
    options: Any,
    sampling: SamplingOptions,
    title: str,
    rounds: int = 1,
) -> None:
    """Go through the links with a bar, and write film and samples."""
    from unidiff_core.application.chain import chain
    from unidiff_core.sampling.spec import TimestepSpec

    if rounds < 1:
        raise ValueError(f"--rounds={rounds}: a chain has one round at least")
    num = options.num or max([1, *map(len, given.values())])
    paths = [TimestepSpec.parse(spec, model.modalities) for spec in specs]
    check_out(options.out, {*map(modality_of, given), *(name for path in paths for name in path.solved)}, [FILM])
    steps = steps_of(sampling, num) * len(specs) * rounds
    tell_idle(paths, sampling, options)
    with progress(title, steps, "steps", transient=True) as show:
        links = chain(
            model,
            specs,
            given,
            options.num,
            rounds=rounds,
            options=sampling,
            on_step=lambda report: show(report.step, scale=0),
        )
        moments = list(links)
    write_moments(model, moments, options.out, title)


def write_moments(model: UniDiffuser, moments: Sequence[Moment], out: Path, title: str) -> None:
    """Write the film of all moments and the samples of the last, each modality's as `sample` writes it."""
    from unidiff_core.application.moment import film

    files = film(model, [*_given(moments), *moments], out, title=title)
    last = {name: i for i, moment in enumerate(moments) for name in moment.solved}
    write(model, {name: moments[i].decode(model)[name] for name, i in last.items()}, out)
    console = Output(highlight=False, soft_wrap=True)
    for path in files:
        console.print(f"{counted(len(moments), 'moment')}: {path}", markup=False)


def _given(moments: Sequence[Moment]) -> list[Moment]:
    """The moment before the first: what was given, and is not replaced by it."""
    from unidiff_core.application.moment import Moment

    first = moments[0]
    names = tuple(dict.fromkeys(name for key in first.latents if (name := modality_of(key)) not in first.solved))
    return [Moment("given", first.latents, names)] if names else []
