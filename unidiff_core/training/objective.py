"""The paper's Algorithm 1 with N modalities in place of two, and nothing of Lightning's.

latents → times → corrupted → prediction → losses → loss
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from unidiff_core.foundation import randomness
from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.latents import Latents, Times, modality_of, over, stream_of
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T
from unidiff_core.modality import Modality
from unidiff_core.process.clean_std import squared_errors
from unidiff_core.process.process import Corruption
from unidiff_core.training.law import TimestepLaw, drawn_times

Network = Callable[[Latents, Times, Mapping[str, Tensor]], dict[str, Tensor]]
"""(corrupted latents, times, modality → bool ``[b]``: which are kept) → predictions."""

Watcher = Callable[[str, Tensor, Tensor, Tensor], None]
"""(full stream name, errors ``[b, ...]``, times ``[b]``, bool ``[b]``: which samples count) → nothing."""

Losses = Mapping[str, tuple[Tensor, Tensor]]
"""Full stream name → summed error, and the number of elements that it is divided by."""


@dataclass(frozen=True)
class Objective:
    """What a training step minimises.

    Attributes:
        modalities: by name.
        law: of the times.
        balance: ``elements`` counts each element of each stream the same, ``streams`` each stream.
        drops: whether what is missing or at T is left out of the network's input and of the loss.
        seed: of every draw.
        watchers: told of each stream's errors in training.
    """

    modalities: Mapping[str, Modality]
    law: TimestepLaw
    balance: Literal["elements", "streams"] = "elements"
    drops: bool = False
    seed: int = 0
    watchers: list[Watcher] = field(default_factory=list, compare=False)

    def __call__(self, latents: Latents, batch: Batch, network: Network, stage: str = "train") -> tuple[Tensor, Losses]:
        """The loss of one micro-batch, and its parts.

        Args:
            latents: clean, of all modalities.
            batch: that they are of.
            network: to be trained.
            stage: ``train`` or ``validation``: each has its own draws.
        """
        times = self.times(batch, stage)
        noisy, prediction, kept = self._predicted(latents, times, batch, network, stage)
        losses = {}
        for key, row in noisy.items():
            name = modality_of(key)
            error = self._error(key, prediction[key], row, times, kept)
            for watch in self.watchers if stage == "train" else ():
                watch(key, error.detach(), times[name], kept.get(name, torch.ones_like(times[name], dtype=torch.bool)))
            losses[key] = error.sum(), self._share(name, error, batch)
        return self.total(losses), losses

    def _predicted(
        self, latents: Latents, times: Times, batch: Batch, network: Network, stage: str
    ) -> tuple[dict[str, Corruption], dict[str, Tensor], Mapping[str, Tensor]]:
        """Corrupted latents, what the network predicts of them, and modality → which samples it saw."""
        noisy = {key: self._corrupt(key, clean, times, batch, stage) for key, clean in latents.items()}
        corrupted = {key: row.corrupted for key, row in noisy.items()}
        kept = {name: t < T for name, t in times.items()} if self.drops else batch.present
        return noisy, network(corrupted, times, kept), kept

    def clean_errors(self, latents: Latents, batch: Batch, network: Network, num_bins: int) -> dict[str, Tensor]:
        """How far clean estimates are from clean values: `squared_errors` of each stream that has a `clean_error`.

        Every modality's times are uniform on (0, T] and independent, whatever the law: what is measured is an average
        over how noisy the other modalities are.
        """
        stage = "clean std"
        times = {
            name: T * (1 - randomness.uniform(self.seed, f"{stage} timestep", name, batch.step, batch.index))
            for name in self.modalities
        }
        times |= {name: torch.where(present, times[name], float(T)) for name, present in batch.present.items()}
        noisy, prediction, kept = self._predicted(latents, times, batch, network, stage)
        errors = {}
        for key, clean in latents.items():
            name = modality_of(key)
            process = self.modalities[name].process
            estimate = process.clean(noisy[key].corrupted, at_least_float32(prediction[key]), times[name])
            error = process.clean_error(estimate, clean)
            if error is not None:
                there = kept.get(name, torch.ones_like(times[name], dtype=torch.bool))
                errors[key] = squared_errors(error[there], times[name][there], num_bins)
        return errors

    def times(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """A time ``[b]`` for each modality by the law, in steps; a missing modality is at T."""

        def uniform(purpose: str, name: str) -> Tensor:
            return randomness.uniform(self.seed, f"{stage} {purpose}", name, batch.step, batch.index)

        drawn = drawn_times(self.law, {name: uniform("timestep", name) for name in self.modalities}, uniform("law", ""))
        return {
            name: torch.where(batch.present[name], t, float(T)) if name in batch.present else t
            for name, t in drawn.items()
        }

    def _corrupt(self, key: str, clean: Tensor, times: Times, batch: Batch, stage: str) -> Corruption:
        name = modality_of(key)
        if name in batch.present:  # what stands in for missing data must not be seen under a process that leaks
            clean = torch.where(over(batch.present[name], clean), clean, torch.zeros_like(clean))
        draws = Draws(self.seed, f"{stage} noise", key, batch.step, batch.index)
        return self.modalities[name].process.corrupt(clean, times[name], draws)

    def _error(
        self, key: str, prediction: Tensor, corruption: Corruption, times: Times, kept: Mapping[str, Tensor]
    ) -> Tensor:
        """The error of each element of a stream; zero of what is not present or not kept."""
        name = modality_of(key)
        error = self.modalities[name].process.loss(at_least_float32(prediction), corruption, times[name])
        return torch.where(over(kept[name], error), error, torch.zeros_like(error)) if name in kept else error

    def _share(self, name: str, error: Tensor, batch: Batch) -> Tensor:
        """The elements that a summed error is divided by: this micro-batch's share of the global batch's.

        The quotients' mean over processes and micro-batches is the global batch's loss.
        """
        return torch.as_tensor(batch.share(name) * math.prod(error.shape[1:]), device=error.device)

    def total(self, losses: Losses) -> Tensor:
        """The loss, of the parts of one micro-batch or of their sums over many."""
        weights = {key: self.modalities[modality_of(key)].weight_of(stream_of(key)) for key in losses}
        if self.balance == "streams":
            return torch.stack([weights[key] * mean_of(*row) for key, row in losses.items()]).mean()
        errors = torch.stack([weights[key] * error for key, (error, _) in losses.items()])
        return mean_of(errors.sum(), torch.stack([count for _, count in losses.values()]).sum())


def summed(one: Losses, other: Losses) -> dict[str, tuple[Tensor, Tensor]]:
    """Errors and counts of both, in double precision where the device has it; either may be empty."""
    parts = [*one.items(), *other.items()]
    sums = {key: torch.zeros(2, dtype=_widest(error), device=error.device) for key, (error, _) in parts}
    for key, pair in parts:
        sums[key] += torch.stack([value.detach().to(sums[key]) for value in pair])
    return {key: (error, count) for key, (error, count) in sums.items()}


def _widest(value: Tensor) -> torch.dtype:
    return torch.float32 if value.device.type == "mps" else torch.float64


def mean_of(error: Shaped[Tensor, ""], count: Shaped[Tensor, ""]) -> Float[Tensor, ""]:
    """Summed error over its elements; zero where there are none. A count below one is a share like any other."""
    return error / torch.where(count > 0, count, torch.ones_like(count))


def at_least_float32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision is too coarse for a loss; double stays double."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
