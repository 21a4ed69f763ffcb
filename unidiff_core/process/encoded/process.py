"""The encoded process: symbols become vectors, which are learned with the network, and Gaussian noise is added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn

from unidiff_core.foundation.latents import over
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.stream import Stream
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import Flow, NoiseSchedule
from unidiff_core.process.gaussian.solver import GaussianSolver
from unidiff_core.process.process import Corruption, Past, Step
from unidiff_core.process.symbols import NOTHING, Symbols, drawn

_LEAST_SIGMA = 1e-6


class Encoded(Symbols):
    """``x_t = alpha·F(x_0) + sigma·ε``: F looks each symbol up in a table of vectors, which is learned.

    The state is of ids at t = 0 and of vectors above it, ``[b, l, width]`` (``[b, width, *grid]`` on a grid). From the
    network's vector h for a symbol its logits are ``h·F(v) + bias_v``; the loss is −log q(x_0 | x_t), whose gradient
    reaches the table through x_t too. The mean of F under the logits is the clean estimate of the state, so that every
    solver of the Gaussian process applies; guidance mixes logits. The last step draws the symbols.

    Nothing but their scale keeps vectors from growing until noise does not matter, so that each is brought to a root
    mean square of 1. For the same reason nothing may be left at T: a table would learn to be large where it is.

    Args:
        vocabulary: number of symbols; that of the stream that it is given to, if not given.
        width: of a vector.
        schedule: alpha and sigma; the straight flow if not given.
        normalise: whether vectors are brought to a root mean square of 1; without it the table collapses
            (docs/processes.md shows how).

    Raises:
        ValueError: if the schedule leaves something of the data at T, or there is no width.
    """

    solvers = GaussianSolver
    default_solver = "dpmpp_2m"
    is_discrete = False  # but for the clean value
    inverts = True
    leak = 0.0

    def __init__(
        self,
        vocabulary: int | None = None,
        width: int = 16,
        schedule: NoiseSchedule | None = None,
        normalise: bool = True,
    ) -> None:
        super().__init__(vocabulary)
        if width < 1:
            raise ValueError(f"the width of a vector is at least 1, not {width}")
        self.width, self.schedule, self.normalise = width, schedule or Flow(), normalise
        if not self.schedule.forgets:
            alpha = self.schedule.alpha(torch.tensor(float(T), dtype=torch.float64)).item()
            raise ValueError(
                f"{type(self.schedule).__name__} leaves {alpha:.3g} of the clean value at T, and an encoder that is "
                "learned puts all that it can into what is left; take Flow, or another schedule whose alpha at T is 0"
            )
        self._noise = Gaussian(self.schedule, "clean")
        if vocabulary is not None:
            self._begin(vocabulary)

    def _begin(self, vocabulary: int) -> None:
        self.table = nn.Parameter(torch.randn(vocabulary, self.width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def seen(self, stream: Stream) -> Stream:
        """A vector for each symbol, on the stream's grid; the vocabulary becomes this process's if it has none."""
        is_new = self.vocabulary is None
        super().seen(stream)
        if is_new:
            self._begin(self.size)
        if len(stream.shape) == 1:
            return Stream.sequence(stream.num_tokens, self.width)
        return Stream.grid(self.width, *stream.shape)

    def predicted(self, stream: Stream) -> Stream:
        """As it is seen."""
        return self.seen(stream)

    def state_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the vectors."""
        return (*shape, self.width) if len(shape) == 1 else (self.width, *shape)

    def check_state(self, x: Shaped[Tensor, "b *state"], t: float) -> None:
        """Ids at 0, numbers above."""
        if t == 0:
            super().check_state(x, t)
        elif not x.is_floating_point():
            raise ValueError(f"a state of Encoded above 0 is of vectors, and this is of {x.dtype}; give ids at 0")

    # --- the encoder ---

    @property
    def vectors(self) -> Float[Tensor, "v width"]:
        """F of every symbol, in single precision at least."""
        table = self.table.to(torch.promote_types(self.table.dtype, torch.float32))
        return F.rms_norm(table, (self.width,)) if self.normalise else table

    def _laid_out(self, vectors: Float[Tensor, "b *shape width"]) -> Float[Tensor, "b *state"]:
        return vectors if vectors.ndim == 3 else vectors.movedim(-1, 1)

    def _encoded(self, x: Shaped[Tensor, "b *shape"]) -> Float[Tensor, "b *state"]:
        """F of a state that is of ids; vectors are left alone."""
        return x if x.is_floating_point() else self._laid_out(self.vectors[x])

    def _mean(self, logits: Float[Tensor, "b *shape v"]) -> Float[Tensor, "b *state"]:
        """E[F] under the logits."""
        return self._laid_out(logits.softmax(-1) @ self.vectors.to(logits.dtype))

    def view(self, x: Shaped[Tensor, "b *shape"], t: Float[Tensor, " b"]) -> Float[Tensor, "b *state"]:
        """Vectors."""
        return self._encoded(x)

    # --- training ---

    def corrupt(self, clean: Int64[Tensor, "b *shape"], t: Float[Tensor, " b"], draws: Draws) -> Corruption:
        """Encoded, and with noise: vectors at t = 0 too. The target is the ids."""
        self.check_ids(clean)
        return Corruption(self._noise.corrupt(self._encoded(clean), t, draws).corrupted, clean)

    def loss(
        self, prediction: Float[Tensor, "b *state"], corruption: Corruption, t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """−log q(x_0 | x_t) of each symbol, in nats."""
        logits = self.clean(corruption.corrupted, prediction, t)
        return F.cross_entropy(logits.movedim(-1, 1), corruption.target, reduction="none")

    def clean_error(
        self, estimate: Float[Tensor, "b *shape v"], clean: Int64[Tensor, "b *shape"]
    ) -> Float[Tensor, "b *state"]:
        """Between vectors."""
        return self._mean(estimate) - self._encoded(clean)

    # --- sampling ---

    def start(self, shape: Sequence[int], draws: Draws) -> Float[Tensor, "b *state"]:
        """Noise."""
        return self._noise.start(self.state_shape(shape), draws)

    def clean(
        self, corrupted: Shaped[Tensor, "b *corrupted"], prediction: Float[Tensor, "b *state"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape v"]:
        """Logits, in single precision at least."""
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        h = prediction if prediction.ndim == 3 else prediction.movedim(1, -1)
        with torch.autocast(h.device.type, enabled=False):  # a softmax over half precision is too coarse
            return F.linear(h.to(dtype), self.vectors.to(dtype), self.bias.to(dtype))

    def prediction_of(
        self, corrupted: Shaped[Tensor, "b *corrupted"], clean: Float[Tensor, "b *shape v"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *state"]:
        """By least squares: exact, up to a constant of the logits, for at most as many symbols as the width and one."""
        wanted = clean - self.bias.to(clean.dtype)
        # Logits of zero probability would drown the others.
        wanted = (wanted - wanted.amax(-1, keepdim=True)).clamp(min=-60)
        columns = torch.cat([self.vectors.to(clean), torch.ones_like(self.bias)[:, None].to(clean)], dim=1)
        return self._laid_out((wanted @ torch.linalg.pinv(columns).mT)[..., :-1])

    def step(
        self,
        x: Shaped[Tensor, "b *before"],
        clean: Float[Tensor, "b *shape v"],
        step: Step,
        solver: GaussianSolver,
    ) -> Shaped[Tensor, "b *next"]:
        """By the chosen solver, on vectors; the symbols are drawn in the step that ends clean."""
        if step.t_next == 0:
            uniform = step.draws.named("what").uniform(tuple(clean.shape[1:-1]))
            return drawn(clean.flatten(0, -2), uniform.flatten()).reshape(clean.shape[:-1])
        state = self._encoded(x)
        estimate = state if step.t == 0 else self._mean(clean).to(state.dtype)
        return self._noise.step(state, estimate, self._with_means(step), solver)

    def _with_means(self, step: Step) -> Step:
        past = [Past(row.t, self._mean(row.clean)) for row in step.history.past]
        return replace(step, history=replace(step.history, past=past))

    def renoise(
        self, x: Shaped[Tensor, "b *before"], t: float, t_next: float, draws: Draws
    ) -> Float[Tensor, "b *state"]:
        """The forward transition, exact in one step."""
        if not x.is_floating_point():
            return self.corrupt(x, time_tensor(t_next, len(x), x.device), draws).corrupted
        return self._noise.renoise(x, t, t_next, draws)

    def corrects(self, step: Step, solver: GaussianSolver) -> bool:
        """If the solver does, but for a step that ends clean."""
        return self._noise.corrects(step, solver)

    def correct(
        self,
        x: Shaped[Tensor, "b *before"],
        x_next: Float[Tensor, "b *state"],
        clean: Float[Tensor, "b *shape v"],
        clean_next: Float[Tensor, "b *shape v"],
        step: Step,
        solver: GaussianSolver,
    ) -> Float[Tensor, "b *state"]:
        """By the chosen solver, on vectors."""
        state = self._encoded(x)
        estimate = state if step.t == 0 else self._mean(clean).to(state.dtype)
        estimate_next = self._mean(clean_next).to(state.dtype)
        return self._noise.correct(state, x_next, estimate, estimate_next, self._with_means(step), solver)

    def log_probability(
        self, corrupted: Shaped[Tensor, "b *state"], clean: Int64[Tensor, "c *shape"], t: Float[Tensor, " b"]
    ) -> Float64[Tensor, "b c"]:
        """Log density of every state given every clean value, but for what depends on the time alone."""
        if not corrupted.is_floating_point():
            differs = (corrupted.flatten(1)[:, None] != clean.flatten(1)).any(-1)
            return differs.double() * NOTHING
        vectors = self._encoded(clean).double().flatten(1)
        alpha, sigma = self.schedule.alpha(t.double()), self.schedule.sigma(t.double()).clamp(min=_LEAST_SIGMA)
        distance = corrupted.double().flatten(1)[:, None] - alpha[:, None, None] * vectors
        return -0.5 * distance.square().sum(-1) / over(sigma, distance[..., 0]).square()

    def log_snr(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Of its schedule."""
        return self.schedule.log_snr(t)

    def extra_repr(self) -> str:
        """For printing the module."""
        kind = "" if self.normalise else ", not normalised"
        return f"{super().extra_repr()} as {self.width} numbers, {type(self.schedule).__name__}{kind}"
