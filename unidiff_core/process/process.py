"""The forward process: how a stream is corrupted, what the network is asked for, and how a reverse step is made.

A process is one folder: `gaussian` is the first. Whoever writes another subclasses `ForwardProcess`, and `Solver` if
its reverse step is a choice; nothing elsewhere lists them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
import yaml
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.registry import UnknownNameError
from unidiff_core.foundation.stream import Stream
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.process.clean_std import CleanStd

S = TypeVar("S", bound="Solver")

METHODS = ("corrupt", "view", "loss", "clean_error", "clean", "mix", "start", "step", "correct")
"""What uses a process's parameters; FSDP2 gathers them around each."""

_CALL = re.compile(r"(\w+)\((.*)\)")


class EstimateError(ValueError):
    """Clean estimates of a kind that something cannot be done with; says why."""


class MixError(EstimateError):
    """Clean estimates that no weighted sum exists of; says why."""


@dataclass(frozen=True)
class Corruption:
    """What a state is corrupted to, and what the network is asked for. A process may add to it what its loss needs."""

    corrupted: Shaped[Tensor, "b *shape"]
    target: Shaped[Tensor, "b *target"]


class Past(NamedTuple):
    """An earlier clean estimate, and the time it was made at."""

    t: float
    clean: Tensor


@dataclass
class History:
    """What a modality's stream went through since the last knot of the path.

    Attributes:
        times: the grid of this stretch in steps, first to last; `Past` and present times are among them.
        past: earlier clean estimates, oldest first, without the present: as many as the solver asks for.
        memory: for a solver's own use.
    """

    times: Sequence[float]
    past: list[Past] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A reverse step, but for the state itself.

    Attributes:
        t: time of the state, in steps 0..T.
        t_next: time that it is moved to; above `t` where a path goes up.
        draws: of this step and stream; nothing is drawn that nobody asks for.
        history: since the last knot.
        clean_std: standard deviation, per element, of what the clean estimate at `t` leaves open; None if it was not
            measured.
        fixed: the stream's one draw, which its start and every corruption of a held value keep; None outside of a loop.
    """

    t: float
    t_next: float
    draws: Draws
    history: History
    clean_std: float | None = None
    fixed: Draws | None = None


class Solver(ABC):
    """One of several reverse steps of a process, by name. It keeps nothing between steps but in `Step.history`.

    Attributes:
        num_past: earlier clean estimates that it uses.
        corrects: whether it asks for a second evaluation a step, at the next time.
    """

    registered_name: ClassVar[str]
    """What it is called in a spec of options: ``ddim``."""
    num_past: int = 0
    corrects: bool = False

    @property
    def num_evaluations(self) -> int:
        """Network evaluations a step, before guidance."""
        return 2 if self.corrects else 1


class ForwardProcess(nn.Module, ABC):
    """The seam between a modality's data and the clock. It may own parameters; it does not own the backbone.

    Times are ``[b]`` in training, and ``[b]`` of one repeated value in sampling, in steps 0..T. Its state need not have
    the dtype of numbers: integer states (symbols) are carried through as they are.

    Attributes:
        clean_std: full stream name → how far the clean estimates are from the clean values, as far as it was measured
            for the weights that the model has.
    """

    estimate: Literal["mean", "median", "logits"]
    """What kind of clean estimate the trained network gives."""
    solvers: ClassVar[type[Solver] | None] = None
    """The kind of solver that `step` takes; None if there is one way to step."""
    default_solver: ClassVar[str] = ""
    """Name of the solver where none is named."""
    is_discrete: ClassVar[bool] = False
    """Whether its state is of symbols, which jump, and have no mean and nothing between them."""
    inverts: ClassVar[bool] = True
    """Whether a path up in time keeps all that is needed to come back."""

    def __init__(self) -> None:
        super().__init__()
        self.clean_std: dict[str, CleanStd] = {}

    # --- what the network sees and returns ---

    def seen(self, stream: Stream) -> Stream:
        """What the network sees of a stream.

        Raises:
            ValueError: if the process does not go with such a stream; says why.
        """
        return stream

    def predicted(self, stream: Stream) -> Stream:
        """What the network must return for a stream."""
        return stream

    def state_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the state above 0 of a latent of this shape; both are without the batch."""
        return tuple(shape)

    def check_state(self, x: Shaped[Tensor, "b *state"], t: float) -> None:
        """Check that somebody's state at a time is one of this process: of numbers, unless it estimates logits.

        Raises:
            ValueError: if it is not; says what is wrong with it.
        """
        if self.estimate != "logits" and not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} is over numbers, and this is of {x.dtype}; give it as float32")

    def view(self, x: Shaped[Tensor, "b *shape"], t: Float[Tensor, " b"]) -> Shaped[Tensor, "b *seen"]:
        """What the network is shown of a state: the state, unless the process says otherwise."""
        return x

    # --- training ---

    @property
    @abstractmethod
    def leak(self) -> float:
        """Bits that x_T tells of each element of x_0: of a number that is standard normal, of a uniform symbol.

        Infinite where a number survives as it is. Where it is 0, "ignored" is exactly a marginal, else approximately.
        """

    @property
    def forgets(self) -> bool:
        """Whether no information is left at T."""
        return self.leak == 0

    @abstractmethod
    def corrupt(self, clean: Shaped[Tensor, "b *shape"], t: Float[Tensor, " b"], draws: Draws) -> Corruption:
        """Forward: a clean value at times t. At t = 0 `corrupted` is `clean`, bit for bit, or what it is encoded as."""

    @abstractmethod
    def loss(
        self, prediction: Float[Tensor, "b *predicted"], corruption: Corruption, t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *elements"]:
        """The loss of each element, unreduced; weights by time or position are in it.

        The sum over what is present in the global batch is divided by the number of its elements.

        Args:
            prediction: in float32 or double.
            corruption: what `corrupt` gave.
            t: the times that it was given.
        """

    def clean_error(
        self, estimate: Float[Tensor, "b *estimate"], clean: Shaped[Tensor, "b *shape"]
    ) -> Float[Tensor, "b *state"] | None:
        """What the clean estimate misses of the clean value, in the numbers of the state; None if it is no mean."""
        return estimate - clean if self.estimate == "mean" else None

    # --- sampling ---

    @abstractmethod
    def start(self, shape: Sequence[int], draws: Draws) -> Shaped[Tensor, "b *shape"]:
        """The state at T of streams of this shape, which is without the batch."""

    @abstractmethod
    def clean(
        self, corrupted: Shaped[Tensor, "b *shape"], prediction: Float[Tensor, "b *predicted"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *estimate"]:
        """The clean estimate that a prediction implies; of the kind that `estimate` names."""

    def prediction_of(
        self, corrupted: Shaped[Tensor, "b *shape"], clean: Float[Tensor, "b *estimate"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *predicted"]:
        """The prediction that implies a clean estimate, `clean` backwards: what a network would have to say."""
        return clean

    @abstractmethod
    def step(
        self, x: Shaped[Tensor, "b *shape"], clean: Float[Tensor, "b *estimate"], step: Step, solver: Any
    ) -> Shaped[Tensor, "b *shape"]:
        """One reverse step, given the clean estimate at the present time.

        Args:
            x: the state.
            clean: its clean estimate.
            step: from when to when, with what randomness, after what.
            solver: one of `solvers`; None if the process has none.
        """

    def is_identity(self, step: Step, shape: Sequence[int], solver: Any) -> bool:
        """Whether this step leaves every state of this shape as it is, so that no clean estimate is needed for it."""
        return False

    def start_in_part(
        self, clean: Shaped[Tensor, "b *shape"], is_free: Bool[Tensor, "b *shape"]
    ) -> tuple[Shaped[Tensor, "b *shape"], Float[Tensor, " b"]] | None:
        """The state in which all of a value is known but what is free, and its time, if the process has such a state.

        A path from there samples what is free given the rest, exactly. None if there is none: what is known can then
        but be put back after each step.
        """
        return None

    def log_snr(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"] | None:
        """Half the logarithm of signal over noise at times, falling; None if its noise is none of numbers."""
        return None

    def knows(self, t: float) -> bool:
        """Whether a state at this time is its own clean estimate, so that the network need not be asked."""
        return False

    def renoise(
        self, x: Shaped[Tensor, "b *shape"], t: float, t_next: float, draws: Draws
    ) -> Shaped[Tensor, "b *shape"]:
        """Forward from a time to a later one by fresh noise. From clean every process can; a process that can from
        elsewhere says how.

        Raises:
            ValueError: if it cannot.
        """
        if t > 0:
            raise ValueError(
                f"{type(self).__name__} cannot be noised afresh from above 0 (here {t / T:g}): begin each rise of a "
                "{renoise: …} path at 0"
            )
        return self.corrupt(x, time_tensor(t_next, len(x), x.device), draws).corrupted

    def corrects(self, step: Step, solver: Any) -> bool:
        """Whether this step is to be corrected by a second evaluation, where it ends."""
        return solver is not None and bool(solver.corrects)

    def correct(
        self,
        x: Shaped[Tensor, "b *shape"],
        x_next: Shaped[Tensor, "b *shape"],
        clean: Float[Tensor, "b *estimate"],
        clean_next: Float[Tensor, "b *estimate"],
        step: Step,
        solver: Any,
    ) -> Shaped[Tensor, "b *shape"]:
        """A better `x_next` from the clean estimate made there, for a solver that `corrects`."""
        return x_next

    def mix(
        self, estimates: Sequence[Float[Tensor, "b *estimate"]], weights: Sequence[float]
    ) -> Float[Tensor, "b *estimate"]:
        """A weighted sum of clean estimates, for guidance; the weights sum to 1.

        Means add. Logits add in log space: the product of the distributions to these powers, up to its normalisation.

        Raises:
            MixError: see `check_mixes`.
        """
        self.check_mixes()
        return torch.stack([weight * row for weight, row in zip(weights, estimates, strict=True)]).sum(0)

    def check_mixes(self) -> None:
        """Whether estimates can be mixed.

        Raises:
            MixError: if they are medians, of which a weighted sum estimates nothing.
        """
        if self.estimate == "median":
            raise MixError(
                f"{type(self).__name__} estimates medians, and a weighted sum of medians estimates nothing: leave "
                "guidance off for it, or train it with a squared error"
            )

    def check_shifts(self) -> None:
        """Whether `shifted` is known.

        Raises:
            EstimateError: if it is not.
        """
        raise EstimateError(
            f"a gradient shifts the estimates of Gaussian noise, and {type(self).__name__} is another process: "
            "leave its modality to guidance"
        )

    def shifted(
        self, clean: Float[Tensor, "b *estimate"], gradient: Float[Tensor, "b *shape"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *estimate"]:
        """The clean estimate under the density times another one.

        Args:
            clean: under the density alone.
            gradient: of the logarithm of the other, by the state.
            t: of the state, in steps.

        Raises:
            EstimateError: see `check_shifts`.
        """
        self.check_shifts()
        return clean

    def find_solver(self, name: str | Solver | None) -> Solver | None:
        """The solver that `step` is to use.

        Raises:
            UnknownNameError: if it is none of this process's; lists those.
        """
        if self.solvers is None:
            if name is None:
                return None
            raise UnknownNameError(f"{type(self).__name__} has one way to step and takes no solver, such as {name!r}")
        return find_solver(self.default_solver if name is None else name, self.solvers)


def find_solver(name: str | Solver, kind: type[S]) -> S:
    """A solver by its registered name, with its arguments in brackets if it takes any, or itself.

    ``ddim`` and ``DiffusersSolver(UniPCMultistepScheduler)`` are names.

    Raises:
        UnknownNameError: if no solver of that kind has the name; lists those that are.
        ValueError: if it cannot be made of those arguments.
    """
    if isinstance(name, kind):
        return name
    if isinstance(name, Solver):
        raise UnknownNameError(f"{type(name).__name__} is no {kind.__name__}; registered: {_known(kind)}")
    if not isinstance(name, str):
        raise UnknownNameError(f"a solver is a name or a {kind.__name__}, not {name!r}; registered: {_known(kind)}")
    call = _CALL.fullmatch(name.strip())
    cls, arguments = (call[1], yaml.safe_load(f"[{call[2]}]")) if call else (name, [])
    try:
        registry = load_plugins()
        registry.find(cls, kind)
    except UnknownNameError:
        what = (
            f"the solver {name!r} is no {kind.__name__}"
            if cls in registry.of_kind(Solver)
            else f"unknown solver {name!r}"
        )
        raise UnknownNameError(f"{what}; known: {_known(kind)}") from None
    solver: S = registry.make(cls, *arguments)
    return solver


def _known(kind: type[Solver]) -> str:
    return ", ".join(sorted(load_plugins().of_kind(kind)))
