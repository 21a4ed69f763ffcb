"""Samples of a training as it goes: drawn at chosen steps, rendered by their codecs, for a page and for loggers."""

from __future__ import annotations

import json
import logging
import mimetypes
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from markupsafe import Markup

from unidiff_core.codec.waveform import from_wav
from unidiff_core.evaluation.gallery import Card, card
from unidiff_core.foundation.atomic import write_text
from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.latents import of_modality
from unidiff_core.foundation.page import render, write_html
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import TimestepSpec
from unidiff_core.training.ema import EMA

_LOG = logging.getLogger(__name__)

PAGE = "samples.html"
STEPS = "shown"


class ShowSamples(pl.Callback):
    """Draws samples before the first step, then every so many, with the average of the weights if there is one.

    Noise and givens are the same each time, so that the same sample is seen to become better: the givens are the first
    validation samples, or what is written for a query. In ``FOLDER/samples.html`` the page grows, newest first; the
    files of a step are in ``FOLDER/shown/<step>``. A logger gets what it can show: Weights & Biases by its
    ``log_image``, ``log_audio``, ``log_text``; TensorBoard by ``add_image``, ``add_audio``, ``add_text``.

    Nothing of the training changes: what is drawn is a function of `seed` alone. All processes draw, as they must where
    the weights are distributed over them, and the first one writes.

    Args:
        queries: spec → options of sampling (``{"image | text": {guidance: 2}}``), and ``given``: modality → a value, as
            after ``--given``, in place of validation samples.
        folder: of the page.
        every_n_steps: optimizer steps.
        num: samples of each query.
        steps: solver steps, where a query does not say.
        seed: of the noise.

    Raises:
        ValueError: if there are no queries, or a number is not positive; when training begins, if a query does not fit
            the model. One that holds what validation does not give is left out with a warning.
    """

    def __init__(
        self,
        queries: dict[str, dict[str, Any]],
        folder: str,
        every_n_steps: int = 1000,
        num: int = 8,
        steps: int = 20,
        seed: int = 0,
    ) -> None:
        if not queries or min(every_n_steps, num, steps) < 1:
            raise ValueError("ShowSamples needs a query at least, and positive every_n_steps, num and steps")
        self.queries, self.folder, self.every_n_steps = queries, folder, every_n_steps
        self.num, self.steps, self.seed = num, steps, seed
        self._plan: list[_Query] = []
        self._shown: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Fix the givens, and show what there is before the next step: a mistake in a query shows at once."""
        # The first process's: another's batch may be padding, and would leave queries out that all must draw.
        latents = trainer.strategy.broadcast(_of_validation(trainer, pl_module, self.num))
        plan = [self._query(text, dict(row), pl_module, latents) for text, row in self.queries.items()]
        self._plan = [query for query in plan if query]
        self._show(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Show, if it is time."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._shown:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show the last step."""
        if trainer.global_step != self._shown:
            self._show(trainer, pl_module)

    def _query(self, text: str, options: dict[str, Any], module: Any, latents: Mapping[str, Any]) -> _Query | None:
        """What is asked for, with its givens; None, and a warning, if there are none.

        Raises:
            ValueError: if the query does not fit; names it.
        """
        try:
            values = options.pop("given", {})
            made = replace(module.sampling, **{"steps": self.steps, "seed": self.seed} | options)
            spec = TimestepSpec.parse(text, module.modalities)
            given: dict[str, Any] = {name: module.codec(name).parse(str(value)) for name, value in values.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"ShowSamples, query {text!r}: {error}") from error
        for name in (name for name, path in spec.paths.items() if path.needs_value and name not in given):
            rows = {key: value for key, value in latents.items() if key.startswith(f"{name}.")}
            if not rows:
                _LOG.warning(
                    "ShowSamples leaves out %r, which needs a %s: the validation data gives none of which all of %d "
                    "samples have it; write one, given: {%s: …}",
                    *(text, name, self.num, name),
                )
                return None
            given |= rows
        return _Query(text, spec, made, given)

    def _show(self, trainer: pl.Trainer, module: Any) -> None:
        self._shown = trainer.global_step
        average = next((row for row in trainer.callbacks if isinstance(row, EMA) and row.average), None)  # type: ignore[attr-defined]
        with average.applied(module) if average else nullcontext(), trainer.precision_plugin.val_step_context():
            drawn = {
                query.text: module.sample(query.spec, query.given, self.num, options=query.options)
                for query in self._plan
            }
        if trainer.is_global_zero:
            self._write(trainer, module, drawn)

    def _write(self, trainer: pl.Trainer, module: Any, drawn: Mapping[str, Mapping[str, list[Any]]]) -> None:
        root, step = Path(self.folder), trainer.global_step
        galleries: dict[str, list[Card]] = {}
        for query in self._plan:
            solved = drawn[query.text]
            galleries[query.text] = _cards(module, query.shown(module, self.num), solved, self.num)
            for name, raws in solved.items():
                place = root / STEPS / f"{step:07d}" / _plain(query.text) / name
                place.mkdir(parents=True, exist_ok=True)
                paths = module.codec(name).save(raws, place)
                for logger in trainer.loggers:
                    hand(logger, f"samples/{query.text}/{name}", paths, raws, step)
        write_text(root / STEPS / f"{step:07d}.html", render("shown.html.j2", galleries=galleries))
        write_page(root)


class _Query:
    """A query with its options and givens."""

    def __init__(self, text: str, spec: TimestepSpec, options: SamplingOptions, given: dict[str, Any]) -> None:
        self.text, self.spec, self.options, self.given = text, spec, options, given
        self._shown: dict[str, list[Any]] | None = None

    def shown(self, module: Any, num: int) -> dict[str, list[Any]]:
        """What is given, as raw samples, decoded once."""
        if self._shown is None:
            latents = {key: value for key, value in self.given.items() if "." in key}
            names = sorted({key.partition(".")[0] for key in latents})
            self._shown = {name: [raw] * num for name, raw in self.given.items() if "." not in name}
            self._shown |= module.decode(latents, names)
        return self._shown


@torch.no_grad()
def _of_validation(trainer: pl.Trainer, module: Any, num: int) -> dict[str, torch.Tensor]:
    """Latents of the first validation samples, of the modalities that all of them have."""
    loaders = trainer.val_dataloaders
    loader = (loaders[0] if loaders else None) if isinstance(loaders, list) else loaders
    batch: Batch | None = next(iter(loader), None) if loader is not None else None
    if batch is None or len(batch.index) < num:
        return {}
    latents = module.latents(trainer.strategy.batch_to_device(batch), "validation")
    return {
        f"{name}.{key}": value[:num]
        for name in module.modalities
        if name not in batch.present or bool(batch.present[name][:num].all())
        for key, value in of_modality(latents, name).items()
    }


def _plain(text: str) -> str:
    """A query as the name of a folder: ``image_given_text``, ``image_and_text``."""
    return re.sub(r"[^\w@.-]+", "_", text.replace("|", " given ").replace(",", " and ")).strip("_")


def _cards(module: Any, given: Mapping[str, list[Any]], solved: Mapping[str, list[Any]], num: int) -> list[Card]:
    codecs = {name: module.codec(name) for name in (*given, *solved)}
    sides = ([{name: raws[i] for name, raws in side.items()} for i in range(num)] for side in (given, solved))
    return [card(above, below, codecs) for above, below in zip(*sides, strict=True)]


def steps_shown(root: Path) -> list[tuple[int, Markup]]:
    """The steps whose samples were drawn so far, newest first, with the HTML of each."""
    paths = sorted((root / STEPS).glob("*.html"), reverse=True)
    return [(int(path.stem), Markup(path.read_text(encoding="utf-8"))) for path in paths]


def write_page(root: Path) -> None:
    """The page of all steps so far, newest first, whole or not at all."""
    title = f"{root.name}: samples of the training"
    write_html(root / PAGE, "samples.html.j2", title=title, steps=steps_shown(root))


def hand(logger: Any, key: str, paths: list[Path], raws: list[Any], step: int) -> None:
    """Give samples to a logger, by what it can show of files of their kind; what it cannot, it does not get.

    Args:
        logger: of the trainer.
        key: under which it shows them.
        paths: files that the samples' codec wrote.
        raws: the samples themselves.
        step: of the training.
    """
    writer: Any = getattr(logger, "experiment", None)
    kinds = {path: (mimetypes.guess_type(path.name)[0] or "").partition("/")[0] for path in paths}
    for kind in ("image", "audio"):
        found = [path for path in paths if kinds[path] == kind]
        if found and hasattr(logger, f"log_{kind}"):
            getattr(logger, f"log_{kind}")(key, [str(path) for path in found], step=step)
        elif found and hasattr(writer, f"add_{kind}"):
            for path in found:
                _add(writer, kind, f"{key}/{path.stem}", path, step)
    if {"image", "audio"} & set(kinds.values()):
        return
    texts = [raw if isinstance(raw, str) else json.dumps(raw, default=repr, ensure_ascii=False) for raw in raws]
    if hasattr(logger, "log_text"):
        logger.log_text(key, columns=["sample"], data=[[text] for text in texts], step=step)
    elif hasattr(writer, "add_text"):
        writer.add_text(key, "\n\n".join(texts), step)


def _add(writer: Any, kind: str, tag: str, path: Path, step: int) -> None:
    """Give a file to TensorBoard's writer."""
    if kind == "image":
        from PIL import Image

        writer.add_image(tag, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
    else:
        sound = from_wav(path.read_bytes())
        writer.add_audio(tag, torch.from_numpy(sound.samples)[None], step, sample_rate=sound.rate)
