"""UniDiffuser: the LightningModule that wires modalities, backbone and timestep law."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unidiff_core import randomness
from unidiff_core.backbone import Backbone, Ports
from unidiff_core.batch import Batch
from unidiff_core.codec import Raw
from unidiff_core.guidance import Guidance
from unidiff_core.law import TimestepLaw, Uniform
from unidiff_core.modality import Modality
from unidiff_core.predictor import Latents, Times, modality_of, of_modality
from unidiff_core.process import Corruption
from unidiff_core.sampling import sample
from unidiff_core.schedule import T
from unidiff_core.solver import Solver
from unidiff_core.spec import SpecError, TimestepSpec
from unidiff_core.uvit import UViT
from unidiff_core.warmup import Warmup

Given = Mapping[str, Raw | Sequence[Raw]]


class UniDiffuser(pl.LightningModule):
    """One network for every marginal, conditional and joint distribution of N modalities (the paper, section 3).

    Args:
        modalities: name → modality.
        backbone: makes the network from the modalities' ports.
        timestep_law: how training draws each modality's time, independently; one law, or one for each modality.
        balance: ``elements`` is the paper's Eq. 5 up to a constant, each element of each stream counting the same;
            ``streams`` gives each stream the same say, however many elements it has.
        optimizer: from parameters; the paper's AdamW if not given.
        lr_scheduler: from the optimizer, stepped with it; the paper's warm-up if not given.
        seed: of every draw in training and validation.
    """

    licence: str | None = None
    """Licence that the weights came under; kept with them by model directories."""
    sources: tuple[str, ...] = ()
    """Where the weights came from."""

    def __init__(
        self,
        modalities: dict[str, Modality],
        backbone: Callable[[Ports], Backbone] = UViT,
        timestep_law: TimestepLaw | dict[str, TimestepLaw] | None = None,
        balance: Literal["elements", "streams"] = "elements",
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not modalities:
            raise ValueError("a UniDiffuser needs at least one modality")
        self.modalities = modalities  # a plain dict: frozen codecs are not part of the module's state
        self.processes = nn.ModuleList(modality.process for modality in modalities.values())  # they may own parameters
        self.backbone = backbone({name: modality.ports for name, modality in modalities.items()})
        laws = timestep_law if isinstance(timestep_law, Mapping) else dict.fromkeys(modalities, timestep_law)
        self.timestep_laws = {name: laws.get(name) or Uniform() for name in modalities}
        self.balance = balance
        self.optimizer = optimizer or partial(AdamW, lr=2e-4, weight_decay=0.03, betas=(0.9, 0.9))
        self.lr_scheduler = lr_scheduler or Warmup
        self.seed = seed

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full stream name → native shape."""
        return {
            f"{name}.{stream}": row.shape
            for name, modality in self.modalities.items()
            for stream, row in modality.codec.streams.items()
        }

    # --- training: the paper's Algorithm 1, with N modalities in place of two ---

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of one micro-batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch) -> None:
        """The same loss, with draws that are the same at every validation."""
        self._step(batch, "validation")

    def test_step(self, batch: Batch) -> None:
        """As validation."""
        self._step(batch, "test")

    def _step(self, batch: Batch, stage: str) -> Tensor:
        latents = self.latents(batch, stage)
        times = self.times(batch, stage)
        noisy = {key: self._corrupt(key, clean, times, batch, stage) for key, clean in latents.items()}
        prediction = self.backbone({key: row.corrupted for key, row in noisy.items()}, times)
        losses = {key: self._loss(key, prediction[key], row.target, batch) for key, row in noisy.items()}
        loss = self._total(losses)
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=len(batch.index), sync_dist=stage != "train")
        for key, (error, count) in losses.items():
            self.log(f"{stage}/{key}", error.detach() / count, batch_size=len(batch.index), sync_dist=stage != "train")
        return loss

    def latents(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Raw → stored → latent, whatever state the batch is in: ``"<modality>.<stream>" -> [b, ...]``."""
        latents: dict[str, Tensor] = {}
        for name in self.modalities:
            stored = of_modality(batch.stored, name)
            if not stored:
                with torch.no_grad():
                    stored = self.codec(name).encode(batch.raws[name])
            latents |= self._latent(name, stored, batch.index, f"{stage} posterior", batch.step, self.seed)
        return latents

    def _latent(
        self, name: str, stored: Mapping[str, Tensor], index: Tensor, purpose: str, step: int, seed: int
    ) -> dict[str, Tensor]:
        def draw(stream: str, shape: tuple[int, ...]) -> Tensor:
            return randomness.normal(seed, purpose, f"{name}.{stream}", step, index, shape[1:])

        latent = self.modalities[name].codec.latent(stored, draw)
        return {f"{name}.{stream}": value for stream, value in latent.items()}

    def codec(self, name: str) -> Any:
        """A modality's codec, on this module's device."""
        return self.modalities[name].codec.to(self.device)

    def times(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """A time ``[b]`` for each modality by its law; a missing modality is at T."""
        times = {}
        for name, law in self.timestep_laws.items():
            t = law.draw(randomness.uniform(self.seed, f"{stage} timestep", name, batch.step, batch.index))
            times[name] = torch.where(batch.present[name], t, float(T)) if name in batch.present else t
        return times

    def _corrupt(self, key: str, clean: Tensor, times: Times, batch: Batch, stage: str) -> Corruption:
        noise = randomness.normal(self.seed, f"{stage} noise", key, batch.step, batch.index, clean.shape[1:])
        name = modality_of(key)
        if name in batch.present:  # what stands in for missing data must not be seen under a schedule that leaks
            clean = torch.where(_over(batch.present[name], clean), clean, torch.zeros_like(clean))
        return self.modalities[name].process.corrupt(clean, times[name], noise.to(clean.dtype))

    def _loss(self, key: str, prediction: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed error of what is present, and the number of its elements (at least one)."""
        name = modality_of(key)
        error = self.modalities[name].process.error(prediction.float(), target.float())
        present = (
            _over(batch.present[name], error).expand_as(error) if name in batch.present else torch.ones_like(error)
        )
        return (error * present).sum(), present.sum().clamp(min=1)

    def _total(self, losses: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        # Counts are averaged over processes, as gradients are: the loss is normalised over the global batch.
        counts = {key: self.trainer.strategy.reduce(n, reduce_op="mean") for key, (_, n) in losses.items()}
        weights = {key: self.modalities[modality_of(key)].weight_of(key.partition(".")[2]) for key in losses}
        if self.balance == "streams":
            return sum((weights[k] * e / counts[k] for k, (e, _) in losses.items()), torch.tensor(0.0)) / len(losses)
        return sum((weights[k] * e for k, (e, _) in losses.items()), torch.tensor(0.0)) / sum(counts.values())

    def configure_optimizers(self) -> Any:
        """Optimizer over what is trainable, and its schedule by step."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    # --- sampling ---

    def predict(self, latents: Latents, times: Times) -> dict[str, Tensor]:
        """The network as a `Predictor`: clean estimates."""
        prediction = self.backbone(latents, times)
        return {
            key: self.modalities[modality_of(key)].process.clean(latents[key], value, times[modality_of(key)])
            for key, value in prediction.items()
        }

    def sample(
        self,
        spec: TimestepSpec | str | Mapping[str, Any],
        given: Given | None = None,
        num: int | None = None,
        *,
        steps: int = 50,
        solver: str | Solver = "dpmpp_2m",
        guidance: float | Mapping[str, float] | Guidance = 0.0,
        seed: int = 0,
        batch_size: int = 256,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, list[Raw]]:
        """Sample what a timestep spec solves, as raw samples.

        Args:
            spec: ``"image | text"``, say; see `TimestepSpec`.
            given: modality → one raw sample, for all, or `num` of them.
            num: number of samples; as many as are given, or one.
            steps: solver steps over the whole path.
            solver: name or `Solver`.
            guidance: a scale s (0 is off), a scale per held modality, or a `Guidance`.
            seed: sample i is a function of (seed, i) alone.
            batch_size: samples at a time; it changes speed and memory, not the samples.
            on_progress: called with (done, in all), in solver steps over all batches.

        Returns:
            Solved modality → list of `num` raw samples.

        Raises:
            SpecError: if spec and given do not fit together.
        """
        spec = TimestepSpec.parse(spec, self.modalities)
        raws, num = _repeated(given or {}, num)
        spec.check_supplied(raws)
        starts = range(0, num, batch_size)
        solved: dict[str, list[Raw]] = {name: [] for name in spec.solved}
        for i, start in enumerate(starts):
            rows = {name: values[start : start + batch_size] for name, values in raws.items()}
            latents = self.sample_latents(
                spec,
                self.encode(rows, seed=seed, first_index=start),
                num=min(batch_size, num - start),
                steps=steps,
                solver=solver,
                guidance=guidance,
                seed=seed,
                first_index=start,
                on_step=_shifted(on_progress, i * steps, len(starts) * steps),
            )
            for name, values in self.decode(latents, spec.solved).items():
                solved[name] += values
        return solved

    def sample_latents(
        self, spec: TimestepSpec | str | Mapping[str, Any], supplied: Latents, **options: Any
    ) -> dict[str, Tensor]:
        """`unidiff_core.sample` with this network: latents in, latents out."""
        training = self.training
        self.eval()
        try:
            return sample(
                self.predict,
                spec,
                processes={name: modality.process for name, modality in self.modalities.items()},
                shapes=self.shapes,
                supplied=supplied,
                device=self.device,
                **options,
            )
        finally:
            self.train(training)

    @torch.no_grad()
    def encode(self, raws: Mapping[str, Sequence[Raw]], *, seed: int = 0, first_index: int = 0) -> dict[str, Tensor]:
        """Raw samples → latents ``"<modality>.<stream>" -> [b, ...]``."""
        latents: dict[str, Tensor] = {}
        for name, values in raws.items():
            index = torch.arange(first_index, first_index + len(values), device=self.device)
            stored = self.codec(name).encode(values)
            latents |= self._latent(name, stored, index, "sample posterior", 0, seed)
        return latents

    @torch.no_grad()
    def decode(self, latents: Latents, names: Iterable[str]) -> dict[str, list[Raw]]:
        """Latents → raw samples of the modalities `names`."""
        return {name: self.codec(name).decode(of_modality(latents, name)) for name in names}

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, weights: Literal["ema", "model"] = "ema", allow_hub: bool = False
    ) -> UniDiffuser:
        """Load a model directory; see `unidiff_core.model_directory`."""
        from unidiff_core.model_directory import load

        return load(folder, weights=weights, allow_hub=allow_hub)


def _over(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (x.ndim - 1))


def _repeated(given: Given, num: int | None) -> tuple[dict[str, list[Raw]], int]:
    """Every given value as a list of `num`."""
    lists = {name: list(value) if isinstance(value, (list, tuple)) else [value] for name, value in given.items()}
    num = num if num is not None else max(map(len, lists.values()), default=1)
    for name, values in lists.items():
        if len(values) not in (1, num):
            raise SpecError(f"{len(values)} values of {name!r} are given for {num} samples; give one, or {num}")
    if num < 1:
        raise SpecError(f"the number of samples is at least 1, not {num}")
    return {name: values * num if len(values) == 1 else values for name, values in lists.items()}, num


def _shifted(
    on_progress: Callable[[int, int], None] | None, offset: int, total: int
) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda done, _: on_progress(offset + done, total)
