"""Carrying requests out, one at a time, with a look at what is being sampled in between."""

from __future__ import annotations

import queue
import threading
import time
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from unidiff_core.cli.call import given_of
from unidiff_core.cli.page.request import Request
from unidiff_core.codec.codec import Raw
from unidiff_core.foundation.inline import read_inline
from unidiff_core.sampling.loop import StepReport
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import TimestepSpec
from unidiff_core.system import UniDiffuser

LOOKS = 4
"""Samples that are decoded for a look in between."""
PAUSE = 0.7
"""Seconds between two looks, at least."""
SHARE = 5
"""A look costs at most one part of so many of the time: the next one waits for this many times what it took."""


@dataclass(frozen=True)
class Frame:
    """Samples of some modalities, at one moment."""

    title: str
    raws: Mapping[str, Sequence[Raw]]


@dataclass(frozen=True)
class View:
    """What there is to see of a request.

    Attributes:
        step: steps that are done.
        steps: in all.
        frames: the last look at what is being sampled, or what came of it.
        is_done: whether it is that.
    """

    step: int
    steps: int
    frames: Sequence[Frame] = ()
    is_done: bool = False


class Refused(Exception):  # noqa: N818 — it is about what was asked
    """A request that is wrong; its message is the sentence that the command prints."""


@dataclass
class Player:
    """A model that is served, and how it was loaded.

    Attributes:
        model: to sample from.
        folder: the model directory, as the person named it.
        explain: (error, command) → the sentence that the command line prints of it; None if it is our fault.
        loading: arguments of ``from_pretrained``.
        device: where it is.
    """

    model: UniDiffuser
    folder: str
    explain: Callable[[Exception, str], str | None]
    loading: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def line(self, request: Request) -> str:
        """The request as a command line."""
        rows = {**self.loading, **({} if self.device == "cpu" else {"device": self.device})}
        return request.line(self.folder, [f"--{name}={_word(value)}" for name, value in rows.items()])

    def python(self, request: Request) -> str:
        """The request as Python."""
        return request.python(self.folder, self.loading, self.device)

    def check(self, request: Request) -> None:
        """Read a request's words.

        Raises:
            Refused: if one is wrong.
        """
        self._told(request.command, lambda: request.options(self.folder))

    def play(self, request: Request) -> Iterator[View]:
        """Carry a request out in a thread of its own; others wait for their turn.

        Closing the iterator ends the sampling after the step that it is at.

        Raises:
            Refused: if the request is wrong.
        """
        views: queue.SimpleQueue[View | Exception] = queue.SimpleQueue()
        is_closed = threading.Event()

        def work() -> None:
            try:
                with self._lock:
                    if not is_closed.is_set():
                        look = _Look(self.model, views.put, is_closed)
                        frames = self._told(request.command, lambda: self._found(request, look))
                        views.put(View(look.steps, look.steps, frames, is_done=True))
            except Exception as error:
                views.put(error)

        threading.Thread(target=work, name="sampling", daemon=True).start()
        try:
            while True:
                view = views.get()
                if isinstance(view, Exception):
                    raise view
                yield view
                if view.is_done:
                    return
        finally:
            is_closed.set()

    def _told(self, command: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Exception, ArgumentError) as error:
            said = self.explain(error, command)
            if said is None:
                raise
            raise Refused(" ".join(said.split())) from error

    def _found(self, request: Request, look: _Look) -> list[Frame]:
        options = request.options(self.folder)
        names = [row.name for row in fields(SamplingOptions) if row.name in options["said"]]
        sampling = replace(self.model.sampling, **{name: options[name] for name in names})
        frames: list[Frame] = _PLAYED[request.command](self.model, options, sampling, look)
        return frames


class _Look:
    """Told of each step: shows how far it is, and now and then what the clean estimates decode to."""

    def __init__(self, model: UniDiffuser, show: Callable[[View], None], is_closed: threading.Event) -> None:
        self.model, self.show, self.is_closed = model, show, is_closed
        self.solved: Sequence[str] = ()
        """Modalities to look at."""
        self.title = ""
        self.done: list[Frame] = []
        """Frames that are whole."""
        self.steps = 1
        self._next = time.monotonic() + PAUSE

    def __call__(self, report: StepReport) -> bool:
        self.steps = report.steps
        now = time.monotonic()
        if now >= self._next and report.step < report.steps and not self.is_closed.is_set():
            self.show(View(report.step, report.steps, [*self.done, *self._decoded(report)]))
            self._next = time.monotonic() + max(PAUSE, SHARE * (time.monotonic() - now))
        return self.is_closed.is_set()

    def _decoded(self, report: StepReport) -> list[Frame]:
        shapes = self.model.shapes
        latents = {key: guess(value[:LOOKS], shapes[key]) for key, value in report.clean.items()}
        found = self.model.decode(latents, self.solved)
        return [Frame(self.title, found)] if found else []


def guess(clean: Tensor, shape: Sequence[int]) -> Tensor:
    """A clean estimate as a latent of this shape: of symbols, of which it is the logits, the likeliest."""
    return clean if tuple(clean.shape[1:]) == tuple(shape) else clean.argmax(-1)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sample(model: UniDiffuser, options: Any, sampling: SamplingOptions, look: _Look) -> list[Frame]:
    text = options.text_spec if options.spec is None else read_inline(options.spec, "--spec")
    spec = TimestepSpec.parse(text, model.modalities)
    look.solved, look.title = spec.solved, str(spec)
    found = model.sample(spec, given_of(options.given, model), options.num, options=sampling, on_step=look)
    return [Frame(str(spec), found)]


_PLAYED: dict[str, Callable[[UniDiffuser, Any, SamplingOptions, _Look], list[Frame]]] = {"sample": _sample}
