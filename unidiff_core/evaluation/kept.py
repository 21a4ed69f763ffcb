"""Draws that are kept: an evaluation that was killed, and is called again, draws only what is missing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unidiff_core.codec.codec import Codec
from unidiff_core.data.shard import write_shards
from unidiff_core.evaluation.metric import Raws, load_samples
from unidiff_core.foundation.atomic import write_json

NOTE = "query.json"


class Kept:
    """A folder of draws, one folder for each query as it was asked, in the codecs' own files.

    What is measured is always what was read back, so that a run that was interrupted gives the same numbers.

    Args:
        folder: made when the first query is drawn; may be removed at any time.
        model: what identifies the weights; draws of other weights are not used.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model

    def has(self, asked: Mapping[str, Any]) -> bool:
        """Whether these samples were drawn before."""
        return (self._folder(asked) / NOTE).is_file()

    def draws(self, asked: Mapping[str, Any], codecs: Mapping[str, Codec], draw: Callable[[], Raws]) -> Raws:
        """Samples as they were drawn before, or drawn now and kept.

        Args:
            asked: all that the samples are a function of, as plain data.
            codecs: of the solved modalities.
            draw: draws them.
        """
        folder = self._folder(asked)
        if not self.has(asked):
            shutil.rmtree(folder, ignore_errors=True)
            raws = draw()
            columns = [[codecs[name].to_bytes(raw) for raw in raws[name]] for name in codecs]
            rows = zip(*columns, strict=True)
            endings = [f"{name}.{codec.extension}" for name, codec in codecs.items()]
            members = ({"__key__": f"{i:07d}", **dict(zip(endings, row, strict=True))} for i, row in enumerate(rows))
            write_shards(folder, members)
            write_json(folder / NOTE, json.loads(self._note(asked)))  # last: without it the folder counts as unfinished
        return load_samples(folder, codecs).raws

    def _note(self, asked: Mapping[str, Any]) -> str:
        return json.dumps({"model": self.model, **asked}, sort_keys=True, default=str)

    def _folder(self, asked: Mapping[str, Any]) -> Path:
        return self.folder / hashlib.sha256(self._note(asked).encode()).hexdigest()[:16]
