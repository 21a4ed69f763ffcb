"""Orders of revealing: the masked process's reverse steps.

A step from k to k' hidden symbols reveals k − k' of them; the orders differ in which. `certain` looks at the state
alone, so that one symbol a step is exact as it is at random. `confident` looks at the drawn symbols too, which prefers
likely ones over the data's own share of them.

With `remask` the step has freshness: 0 keeps what is revealed, 1 predicts all and hides k' of all symbols anew (the two
samplers of Su's masked example; between them ReMDM, Wang et al. 2025, https://arxiv.org/abs/2503.00307, in counts).
The number of hidden symbols after the step is k' in any case.

Below a `temperature` of 1 likely symbols are drawn more often than the network says. No law is then exact; but a
network leaves a little to each wrong symbol, which l draws meet l times, and right ones that are alike stay so.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unidiff_core.foundation.randomness import Draws
from unidiff_core.process.process import Solver, Step
from unidiff_core.process.symbols import ranks, ranks_of


class MaskedSolver(Solver, ABC):
    """An order of revealing.

    Args:
        remask: freshness in [0, 1].
        temperature: logits are divided by it before a symbol is drawn: at 1 symbols are drawn by the network's own
            probabilities, below 1 likely ones more often than that.
    """

    uses_drawn = False
    """Whether the order looks at the symbols that would be revealed."""

    def __init__(self, remask: float = 0.0, temperature: float = 1.0) -> None:
        if not 0 <= remask <= 1:
            raise ValueError(f"remask is from 0 (keeps what is revealed) to 1 (hides anything anew), not {remask}")
        if not 0 < temperature < math.inf:
            raise ValueError(
                "a temperature is above 0 (1 draws by the network's probabilities, 0.8 likely symbols more often), "
                f"not {temperature}; close to 0 the likeliest symbol is drawn"
            )
        self.remask, self.temperature = remask, temperature

    @abstractmethod
    def trust(self, logits: Tensor, drawn: Int64[Tensor, " n"] | None) -> Float64[Tensor, " n"]:
        """How early each hidden symbol is revealed, the largest first; equal ones by the sample's own order.

        Args:
            logits: of the hidden symbols, ``[n, v]``.
            drawn: symbols that would be revealed, if `uses_drawn`.
        """

    def remasked(
        self, is_hidden: Bool[Tensor, "b n"], hidden_next: int, draws: Draws
    ) -> tuple[Bool[Tensor, "b n"], Int64[Tensor, "b n"]]:
        """Which revealed symbols are hidden anew, and the order of the others that this freshness goes by."""
        size = is_hidden.shape[1]
        order = ranks_of(draws.named("remask").uniform((size,)))
        stays_away = draws.named("remask whether").uniform((size,)) >= self.remask
        return (order < hidden_next) & ~is_hidden & ~stays_away, order

    def order(self, step: Step, shape: tuple[int, ...]) -> Int64[Tensor, "b *shape"]:
        """The sample's own order, which its corruption has too."""
        return ranks(step.fixed or step.draws, shape)


class Random(MaskedSolver):
    """The order in which the forward process hides, backwards: it depends on nothing that is drawn.

    Args:
        remask: freshness in [0, 1]: 0 keeps what is revealed, 1 hides all anew.
        temperature: above 0; below 1 likely symbols are drawn more often than the network says.
    """

    registered_name = "random"

    def trust(self, logits: Tensor, drawn: Int64[Tensor, " n"] | None) -> Float64[Tensor, " n"]:
        """None is told from another."""
        return torch.zeros(len(logits), dtype=torch.float64, device=logits.device)


class Certain(MaskedSolver):
    """First where the state leaves least open: by the largest probability. What is then drawn is drawn as ever.

    Args:
        remask: freshness in [0, 1]: 0 keeps what is revealed, 1 hides all anew.
        temperature: above 0; below 1 likely symbols are drawn more often than the network says.
    """

    registered_name = "certain"

    def trust(self, logits: Tensor, drawn: Int64[Tensor, " n"] | None) -> Float64[Tensor, " n"]:
        """The largest probability."""
        return logits.double().softmax(-1).amax(-1)


class Confident(MaskedSolver):
    """First where the drawn symbol is likely: LLaDA's and MaskGIT's order. It seeks modes, and is not exact.

    Args:
        remask: freshness in [0, 1]: 0 keeps what is revealed, 1 hides all anew.
        temperature: above 0; below 1 likely symbols are drawn more often than the network says.
    """

    registered_name = "confident"
    uses_drawn = True

    def trust(self, logits: Tensor, drawn: Int64[Tensor, " n"] | None) -> Float64[Tensor, " n"]:
        """The probability of what was drawn."""
        assert drawn is not None
        return logits.double().softmax(-1).gather(-1, drawn[:, None])[:, 0]
