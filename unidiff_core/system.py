"""UniDiffuser: the LightningModule that wires modalities, backbone and timestep law."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unidiff_core import randomness
from unidiff_core.backbone import Backbone, Ports
from unidiff_core.batch import Batch
from unidiff_core.codec import Raw, check_latent
from unidiff_core.guidance import Guidance
from unidiff_core.law import TimestepLaw, Uniform
from unidiff_core.lora import LoRA
from unidiff_core.modality import Modality
from unidiff_core.predictor import Latents, Times, dropped, modality_of, of_modality
from unidiff_core.process import Corruption
from unidiff_core.sampling import sample
from unidiff_core.schedule import T
from unidiff_core.sharding import shard
from unidiff_core.solver import Solver
from unidiff_core.spec import SpecError, TimestepSpec
from unidiff_core.uvit import UViT
from unidiff_core.warmup import Warmup

Given = Mapping[str, Raw | Sequence[Raw]]


class UniDiffuser(pl.LightningModule):
    """One network for every marginal, conditional and joint distribution of N modalities (the paper, section 3).

    Args:
        modalities: name → modality. With `init_from`, those that are new or that replace one of the directory's.
        backbone: makes the network from the modalities' ports; with `init_from`, the directory's if not given.
        timestep_law: how training draws each modality's time, independently; one law, or one for each modality.
        balance: ``elements`` is the paper's Eq. 5 up to a constant, each element of each stream counting the same;
            ``streams`` gives each stream the same say, however many elements it has.
        optimizer: from parameters; the paper's AdamW if not given.
        lr_scheduler: from the optimizer, stepped with it; the paper's warm-up if not given.
        seed: of every draw in training and validation.
        drop_ignored: whether training leaves out, sample by sample, what is missing or drawn at T: its tokens and its
            time's. Cheaper, and what `drop_ignored` in sampling needs; give a law with mass at T.
        init_from: model directory to start from. Modalities that it lacks start fresh: their tokens and heads are the
            only new weights.
        init_weights: the directory's average, or its model's own weights.
        freeze_loaded: whether what `init_from` gave is left as it is, so that only new modalities (and LoRA) train.
        lora: adapters to train beside the frozen weights of `init_from`; merged when a model directory is written.
        allow_hub: whether codecs that `init_from` describes may fetch weights by hub id.

    Raises:
        ValueError: if there is no modality, or an option needs `init_from`.
        ModelDirectoryError: if `init_from` cannot be read or does not fit.
    """

    licence: str | None = None
    """Licence that the weights came under; kept with them by model directories."""
    sources: tuple[str, ...] = ()
    """Where the weights came from."""

    def __init__(
        self,
        modalities: dict[str, Modality] | None = None,
        backbone: Callable[[Ports], Backbone] | None = None,
        timestep_law: TimestepLaw | dict[str, TimestepLaw] | None = None,
        balance: Literal["elements", "streams"] | None = None,
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
        drop_ignored: bool = False,
        init_from: str | None = None,
        init_weights: Literal["ema", "model"] = "ema",
        freeze_loaded: bool = False,
        lora: LoRA | None = None,
        allow_hub: bool = False,
    ) -> None:
        super().__init__()
        if init_from:
            from unidiff_core.model_directory import read_description

            start = read_description(init_from, allow_hub=allow_hub)
            fresh = set(modalities or {}) - set(start.modalities)
            modalities = start.modalities | (modalities or {})
            backbone, balance = backbone or start.backbone, balance or start.balance
            self.licence, self.sources = start.licence, start.sources  # what is trained from them stays under it
        elif freeze_loaded or lora:
            raise ValueError("freeze_loaded and lora are for training that starts from a model: give init_from")
        if not modalities:
            raise ValueError("a UniDiffuser needs at least one modality")
        self.modalities = modalities  # a plain dict: frozen codecs are not part of the module's state
        # They may own parameters; named so that these say whose they are.
        self.processes = nn.ModuleDict({f"{name}:process": modality.process for name, modality in modalities.items()})
        self.backbone = (backbone or UViT)({name: modality.ports for name, modality in modalities.items()})
        laws = timestep_law if isinstance(timestep_law, Mapping) else dict.fromkeys(modalities, timestep_law)
        self.timestep_laws = {name: laws.get(name) or Uniform() for name in modalities}
        self.balance = balance or "elements"
        self.optimizer = optimizer or partial(AdamW, lr=2e-4, weight_decay=0.03, betas=(0.9, 0.9))
        self.lr_scheduler = lr_scheduler or Warmup
        self.seed = seed
        self.drop_ignored = drop_ignored
        self.lora = lora
        if init_from:
            self._start_from(Path(init_from), init_weights, fresh, freezes=freeze_loaded or lora is not None)

    def _start_from(self, folder: Path, weights: Literal["ema", "model"], fresh: set[str], *, freezes: bool) -> None:
        from unidiff_core.model_directory import load_weights

        loaded = set(load_weights(self, folder, weights, fresh=fresh))
        if freezes:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name not in loaded)
        if self.lora:
            self.lora.inject(self.backbone)

    def configure_model(self) -> None:
        """Shard the backbone, where the strategy gave a mesh of devices (FSDP2).

        Raises:
            ValueError: if `drop_ignored` is on: how often the backbone is then evaluated differs between processes, and
                sharded ones would wait for each other for ever.
        """
        mesh = self.device_mesh
        if mesh is not None and self.drop_ignored:
            raise ValueError("drop_ignored does not go with FSDP2; use DDP, or leave it out")
        if mesh is not None and not any(isinstance(value, DTensor) for value in self.parameters()):
            shard(self.backbone, mesh["data_parallel"])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full stream name → shape of its latents."""
        return {
            f"{name}.{stream}": tuple(shape)
            for name, modality in self.modalities.items()
            for stream, shape in modality.codec.shapes.items()
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
        corrupted = {key: row.corrupted for key, row in noisy.items()}
        kept = {name: t < T for name, t in times.items()} if self.drop_ignored else batch.present
        prediction = (
            self.network_on_kept(corrupted, times, kept) if self.drop_ignored else self.network(corrupted, times)
        )
        losses = {key: self._loss(key, prediction[key], row.target, batch, kept) for key, row in noisy.items()}
        loss = self._total(losses)
        rows = {f"{stage}/{key}": mean_of(error.detach(), count) for key, (error, count) in losses.items()}
        self.log(f"{stage}/loss", loss.detach(), prog_bar=True, batch_size=len(batch.index), sync_dist=True)
        self.log_dict(rows, batch_size=len(batch.index), sync_dist=True)
        return loss

    def network(self, latents: Latents, times: Times) -> dict[str, Tensor]:
        """The backbone on latents in the dtype of its weights."""
        dtype = next(self.backbone.parameters()).dtype
        prediction: dict[str, Tensor] = self.backbone({key: value.to(dtype) for key, value in latents.items()}, times)
        return prediction

    def network_on_kept(self, latents: Latents, times: Times, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The backbone on each sample's kept modalities alone: one evaluation for each pattern of them that occurs.

        Args:
            latents: of the whole micro-batch.
            times: as well.
            kept: modality → bool ``[b]``.

        Returns:
            Predictions of all streams, zero where a sample dropped the modality.
        """
        patterns = torch.stack([kept[name] for name in self.modalities], dim=1)  # (b, N)
        prediction = {key: torch.zeros_like(value) for key, value in latents.items()}
        for pattern in patterns.unique(dim=0):
            rows = (patterns == pattern).all(1).nonzero()[:, 0]
            absent = [name for name, keeps in zip(self.modalities, pattern.tolist(), strict=True) if not keeps]
            if len(absent) == len(self.modalities):
                continue
            some_latents = {key: value[rows] for key, value in latents.items()}
            some_times = {name: t[rows] for name, t in times.items()}
            for key, value in self.network(*dropped(some_latents, some_times, absent)).items():
                prediction[key] = prediction[key].to(value.dtype).index_copy(0, rows, value)
        # A parameter that no sample used still takes part: DDP and FSDP2 wait for its gradient.
        nothing = sum((parameter.sum() * 0 for parameter in self.backbone.parameters()), torch.tensor(0.0))
        return {key: value + nothing for key, value in prediction.items()}

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

        codec = self.modalities[name].codec
        latent = codec.latent(stored, draw)
        check_latent(codec, latent)
        return {f"{name}.{stream}": value.to(index.device) for stream, value in latent.items()}

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

    def _loss(
        self, key: str, prediction: Tensor, target: Tensor, batch: Batch, kept: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Summed error of what is present and kept, and the elements that it is divided by: this micro-batch's share of
        the global batch's. Their quotients' mean over processes and micro-batches is the global batch's loss.
        """
        name = modality_of(key)
        error = self.modalities[name].process.error(at_least_float32(prediction), at_least_float32(target))
        if name in kept:
            error = torch.where(_over(kept[name], error), error, torch.zeros_like(error))
        return error.sum(), torch.as_tensor(batch.share(name) * math.prod(error.shape[1:]), device=error.device)

    def _total(self, losses: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        weights = {key: self.modalities[modality_of(key)].weight_of(key.partition(".")[2]) for key in losses}
        if self.balance == "streams":
            return torch.stack([weights[key] * mean_of(*row) for key, row in losses.items()]).mean()
        errors = torch.stack([weights[key] * error for key, (error, _) in losses.items()])
        return mean_of(errors.sum(), torch.stack([count for _, count in losses.values()]).sum())

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
        prediction = self.network(latents, times)
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
        drop_ignored: bool = False,
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
            drop_ignored: whether what is ignored is left out of the network's input; see `unidiff_core.sample`.
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
                drop_ignored=drop_ignored,
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


def mean_of(error: Tensor, count: Tensor) -> Tensor:
    """Summed error over its elements; zero where there are none. A count below one is a share like any other."""
    return error / torch.where(count > 0, count, torch.ones_like(count))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for a loss; double stays double."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _over(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (x.ndim - 1))


def _repeated(given: Given, num: int | None) -> tuple[dict[str, list[Raw]], int]:
    """Every given value as a list of `num`."""
    lists = {name: list(value) if isinstance(value, (list, tuple)) else [value] for name, value in given.items()}
    num = num if num is not None else max(map(len, lists.values()), default=1)
    for name, values in lists.items():
        if len(values) not in (1, num):
            raise SpecError(
                f"{len(values)} values of {name!r} are given for {num} samples; give one, or {num} (a list or tuple "
                "is several samples: a single one that is a list itself goes into a list)"
            )
    if num < 1:
        raise SpecError(f"the number of samples is at least 1, not {num}")
    return {name: values * num if len(values) == 1 else values for name, values in lists.items()}, num


def _shifted(
    on_progress: Callable[[int, int], None] | None, offset: int, total: int
) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda done, _: on_progress(offset + done, total)
