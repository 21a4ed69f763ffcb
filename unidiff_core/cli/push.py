"""``unidiffuser push``: a model directory → a repository of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unidiff_core.cli.option import MODEL, PlainParser

DESCRIPTION = """Upload a model directory to the Hugging Face hub: its configuration, weights, card (README.md) and the
weights of its codecs. Checkpoints, logs and data stay here. Log in first, with `hf auth login` or
HF_TOKEN.

  unidiffuser push runs/digits me/digits --private
  unidiffuser push runs/digits me/digits --dry_run     list what would be uploaded, and contact nobody

Whoever is allowed to see it has it by `UniDiffuser.from_pretrained("me/digits", allow_hub=True)`, and with
`unidiffuser sample me/digits --allow_hub ...`. Only YAML, JSON, text and safetensors are fetched.
"""


def run(argv: Sequence[str]) -> None:
    """Upload the model directory that `argv` names.

    Raises:
        ValueError: if it is none, or the hub refuses it; says why.
    """
    options = _parser().parse_args(list(argv))

    from unidiff_core.serialization.hub import push, repository

    more = {"datasets": options.datasets, "allow_outside": options.allow_outside}
    if not options.dry_run:
        print(push(options.model, options.repository, private=options.private, **more))
        return
    with repository(options.model, options.repository, **more) as folder:
        for path in sorted(row for row in folder.rglob("*") if row.is_file()):
            print(f"{path.stat().st_size:>13,}  {path.relative_to(folder)}")


def _parser() -> PlainParser:
    parser = PlainParser("push", DESCRIPTION)
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    parser.add_argument("repository", metavar="REPOSITORY", help="user/name on the hub; it is made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it for yourself, if it is made")
    parser.add_argument("--datasets", nargs="*", default=[], help="hub ids of what it was trained on, for the card")
    parser.add_argument("--allow_outside", action="store_true", help="upload weights of codecs that lie elsewhere too")
    parser.add_argument("--dry_run", action="store_true", help="list the files, and contact nobody")
    return parser
