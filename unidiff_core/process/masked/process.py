"""The masked process: symbols are hidden one after the other, and the network guesses what is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from unidiff_core.foundation.latents import over
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.stream import Stream
from unidiff_core.foundation.time import T
from unidiff_core.process.masked.solver import MaskedSolver
from unidiff_core.process.process import Corruption, Step
from unidiff_core.process.symbols import NOTHING, Symbols, chosen, count_at, num_corrupted, ranks, shape_size

Weight = Literal["elbo", "flat"]


@dataclass(frozen=True)
class Hidden(Corruption):
    """What was hidden, for the loss."""

    is_hidden: Bool[Tensor, "b *shape"]


class Masked(Symbols):
    """Symbols that are hidden: at time t the first k(t) = ⌈l·t/T⌉ of the sample's own random order, of l in all.

    The state is of ids 0..V, V for what is hidden; at T all is, whatever the data, and nothing is left of it. The
    network sees that state, and gives V logits for each place. Revealing one symbol a step samples exactly, if the
    network is exact, with l evaluations (Zheng et al. 2024, https://arxiv.org/abs/2409.02908).

    Args:
        vocabulary: V; that of the stream that it is given to, if not given.
        weight: of the loss. ``elbo``: l/k, whose mean over t bounds −log p(x_0) a symbol, in nats; ``flat``: 1.
    """

    solvers = MaskedSolver
    default_solver = "random"
    leak = 0.0

    def __init__(self, vocabulary: int | None = None, weight: Weight = "elbo") -> None:
        super().__init__(vocabulary)
        if weight not in get_args(Weight):
            raise ValueError(f"unknown weight {weight!r}; known: {', '.join(get_args(Weight))}")
        self.weight = weight

    def seen(self, stream: Stream) -> Stream:
        """The stream with one symbol more."""
        stream = super().seen(stream)
        return Stream.symbols(*stream.shape, vocabulary=self.size + 1)

    def check_state(self, x: Shaped[Tensor, "b *state"], t: float) -> None:
        """Ids, and above 0 also what is hidden."""
        super().check_state(torch.where(x == self.size, 0, x) if t > 0 else x, t)

    def corrupt(self, clean: Int64[Tensor, "b *shape"], t: Float[Tensor, " b"], draws: Draws) -> Hidden:
        """Hide; the target is the ids."""
        self.check_ids(clean)
        shape = tuple(clean.shape[1:])
        is_hidden = ranks(draws, shape) < over(num_corrupted(t, shape_size(shape)), clean)
        return Hidden(torch.where(is_hidden, self.size, clean), clean, is_hidden)

    def loss(
        self, prediction: Float[Tensor, "b *predicted"], corruption: Corruption, t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Cross entropy of what is hidden, weighted; zero elsewhere. In nats."""
        assert isinstance(corruption, Hidden)
        error = self.cross_entropy(prediction, corruption.target) * corruption.is_hidden
        if self.weight == "flat":
            return error
        length = shape_size(corruption.target.shape[1:])
        return over(length / num_corrupted(t, length).clamp(min=1).double(), error).to(error.dtype) * error

    def start(self, shape: Sequence[int], draws: Draws) -> Int64[Tensor, "b *shape"]:
        """Everything hidden."""
        return torch.full((len(draws.index), *shape), self.size, device=draws.index.device)

    def start_in_part(
        self, clean: Int64[Tensor, "b *shape"], is_free: Bool[Tensor, "b *shape"]
    ) -> tuple[Int64[Tensor, "b *shape"], Float[Tensor, " b"]]:
        """What is free is hidden, at the time at which so many are."""
        self.check_ids(clean)
        return torch.where(is_free, self.size, clean), T * is_free.flatten(1).double().mean(1)

    def is_identity(self, step: Step, shape: Sequence[int], solver: MaskedSolver) -> bool:
        """Where as many are hidden after it as before, unless it hides others."""
        length = shape_size(shape)
        left = count_at(step.t_next, length)
        return count_at(step.t, length) == left and (not solver.remask or left in (0, length))

    def step(
        self,
        x: Int64[Tensor, "b *shape"],
        clean: Float[Tensor, "b *shape v"],
        step: Step,
        solver: MaskedSolver,
    ) -> Int64[Tensor, "b *shape"]:
        """Reveal some of what is hidden, in the solver's order; a step up in time hides as the forward process does."""
        shape = tuple(x.shape[1:])
        length = shape_size(shape)
        flat, logits = x.flatten(1), clean.flatten(1, -2) / solver.temperature
        is_hidden, left = flat == self.size, count_at(step.t_next, length)
        order = solver.order(step, shape).flatten(1)
        if step.t_next > step.t:
            return torch.where(order < left, self.size, flat).reshape(x.shape)
        anew = torch.zeros_like(is_hidden)
        if solver.remask:
            anew, order = solver.remasked(is_hidden, left, step.draws)
        stays = self._stays(is_hidden, logits, left - anew.sum(1), order, step, solver)
        reveals = is_hidden & ~stays
        ids, _ = chosen(reveals, logits, step.draws)
        moved = flat.masked_scatter(reveals, ids)
        return torch.where(anew, self.size, moved).reshape(x.shape)

    def _stays(
        self,
        is_hidden: Bool[Tensor, "b n"],
        logits: Float[Tensor, "b n v"],
        left: Int64[Tensor, " b"],
        order: Int64[Tensor, "b n"],
        step: Step,
        solver: MaskedSolver,
    ) -> Bool[Tensor, "b n"]:
        """Which `left` of the hidden symbols stay hidden: those that are trusted least, the first of the order."""
        ids, rows = chosen(is_hidden, logits, step.draws) if solver.uses_drawn else (None, logits[is_hidden])
        trust = torch.full(is_hidden.shape, torch.inf, dtype=torch.float64, device=logits.device)
        trust[is_hidden] = solver.trust(rows, ids)
        by_order = order.argsort(dim=1)
        by_trust = trust.gather(1, by_order).argsort(dim=1, stable=True)
        place = by_order.gather(1, by_trust).argsort(dim=1)
        return is_hidden & (place < left[:, None])

    def log_probability(
        self, corrupted: Int64[Tensor, "b *shape"], clean: Int64[Tensor, "c *shape"], t: Float[Tensor, " b"]
    ) -> Float64[Tensor, "b c"]:
        """Log q(x_t | x_0) of every state and every clean value, but for what depends on the state alone."""
        state, value = corrupted.flatten(1)[:, None], clean.flatten(1)
        fits = ((state == value) | (state == self.size)).all(-1)
        return (~fits).double() * NOTHING  # as a scalar it would be too large for single precision
