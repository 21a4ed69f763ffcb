"""UniDiffuser: the LightningModule that wires modalities, backbone, objective and sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unidiff_core.codec.codec import Raw, check_latent, check_raws
from unidiff_core.foundation import randomness
from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.clipping import clip_gradients
from unidiff_core.foundation.distributed import from_the_first, gathered
from unidiff_core.foundation.error import meant
from unidiff_core.foundation.finite import NonFiniteError, non_finite
from unidiff_core.foundation.latents import (
    Conditions,
    Latents,
    Times,
    cast,
    check_latents,
    modality_of,
    of_modality,
    over,
    stream_of,
)
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.precision import Precision, at_least_single, dtype_of, full_precision
from unidiff_core.modality import Modality
from unidiff_core.network.backbone import Backbone, Ports
from unidiff_core.network.lora import merged
from unidiff_core.network.uvit import UViT
from unidiff_core.process.clean_std import CleanStd
from unidiff_core.process.process import ForwardProcess
from unidiff_core.sampling.call import batches, latents_of
from unidiff_core.sampling.given import Given, conditions_of
from unidiff_core.sampling.loop import OnStep, sample
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import SpecError, TimestepSpec
from unidiff_core.serialization.description import Description, ModelDirectoryError, describe
from unidiff_core.serialization.hub import located
from unidiff_core.serialization.model_directory import load_weights, read_description, save
from unidiff_core.training.accumulation import Accumulation
from unidiff_core.training.dropping import predicted_on_kept
from unidiff_core.training.finite import SkipNonFinite, check_finite
from unidiff_core.training.fsdp import distribute
from unidiff_core.training.law import Each, TimestepLaw, law_of
from unidiff_core.training.learning_rate import DecayInTime, Warmup
from unidiff_core.training.lost import CountLost
from unidiff_core.training.objective import Losses, Network, Objective, mean_of, summed
from unidiff_core.training.resume import Resume
from unidiff_core.training.sealed import Sealed
from unidiff_core.training.signals import Signals
from unidiff_core.training.spike import LogSpikes
from unidiff_core.training.start import Start


class UniDiffuser(pl.LightningModule):
    """One network for every marginal, conditional and joint distribution of N modalities (the paper, section 3).

    Args:
        modalities: name → modality. With `start`, those that are new or that replace one of the directory's.
        backbone: makes the network from the modalities' ports; with `start`, the directory's if not given.
        timestep_law: how training draws the times of a sample's modalities: one law for all, or one for each by name,
            which are then independent; the paper's if not given.
        balance: ``elements`` is the paper's Eq. 5 up to a constant, each element of each stream counting the same;
            ``streams`` gives each stream the same say, however many elements it has.
        optimizer: from parameters; the paper's AdamW if not given.
        lr_scheduler: from the optimizer, stepped with it; the paper's warm-up if not given.
        seed: of every draw in training and validation.
        drop_ignored: whether training leaves out, sample by sample, what is missing or drawn at T: its tokens and its
            time's. Cheaper, and what `drop_ignored` in sampling needs; give a law with mass at T.
        start: a model directory to start from, in place of nothing.

    Raises:
        ValueError: if there is no modality, or the law is for one that there is not.
        ModelDirectoryError: if the directory of `start` cannot be read or does not fit.
    """

    licence: str | None = None
    """Licence that the weights came under; kept with them by model directories."""
    sources: tuple[str, ...] = ()
    """Where the weights came from."""
    sampling: SamplingOptions = SamplingOptions()
    """How this model is sampled where nothing else is said."""

    def __init__(
        self,
        modalities: dict[str, Modality] | None = None,
        backbone: Callable[[Ports], Backbone] | None = None,
        timestep_law: TimestepLaw | dict[str, Each] | None = None,
        balance: Literal["elements", "streams"] | None = None,
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
        drop_ignored: bool = False,
        start: Start | None = None,
    ) -> None:
        super().__init__()
        given = modalities or {}
        known = start.describe() if start else Description({}, {}, "elements")
        self.licence, self.sources = known.licence, known.sources  # what is trained from them stays under it
        self.sampling = _sampling_of(known)
        self.modalities = known.modalities | given  # a plain dict: frozen codecs are not part of the module's state
        if not self.modalities:
            raise ValueError(
                "a UniDiffuser needs at least one modality; UniDiffuser.from_pretrained(folder) opens a trained one"
            )
        # They may own parameters; named so that these say whose they are.
        self.processes = nn.ModuleDict({f"{name}:process": row.process for name, row in self.modalities.items()})
        make = backbone or (known.make_backbone if start else UViT)
        self.backbone = make({name: modality.ports for name, modality in self.modalities.items()})
        self.objective = Objective(
            self.modalities,
            law_of(timestep_law, list(self.modalities)),
            balance or known.balance,
            drops=drop_ignored,
            seed=seed,
        )
        self.optimizer = optimizer or partial(AdamW, lr=2e-4, weight_decay=0.03, betas=(0.9, 0.9))
        self.lr_scheduler = lr_scheduler or Warmup
        self._sums: Losses = {}
        if start:
            start.load(self, self.backbone, fresh=given.keys() - known.modalities.keys())

    def configure_model(self) -> None:
        """Distribute the parameters, where the strategy gave a mesh of devices (FSDP2).

        Raises:
            ValueError: if `drop_ignored` is on, for a backbone that does not take what is kept: how often it is then
                evaluated differs between processes, and distributed ones would wait for each other for ever.
        """
        mesh = self.device_mesh
        if mesh is not None and self.objective.drops and not self.backbone.takes_kept:
            raise ValueError(f"drop_ignored does not go with FSDP2 under {type(self.backbone).__name__}; use DDP")
        if mesh is not None and not any(isinstance(value, DTensor) for value in self.parameters()):
            from_the_first(self.state_dict(), torch.device(mesh.device_type))
            distribute(self.backbone, self._processes.values(), mesh["data_parallel"])

    @property
    def _processes(self) -> dict[str, ForwardProcess]:
        return {name: modality.process for name, modality in self.modalities.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full stream name → shape of its latents."""
        return {
            f"{name}.{stream}": tuple(shape)
            for name, modality in self.modalities.items()
            for stream, shape in modality.codec.shapes.items()
        }

    # --- training ---

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of one micro-batch."""
        loss, losses = self._losses(batch, "train")
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.index), sync_dist=True)
        every = self._trainer.log_every_n_steps if self._trainer else 0  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:  # each step's costs a tenth of a small network's
            rows = {f"train/{key}": mean_of(error.detach(), count) for key, (error, count) in losses.items()}
            self.log_dict(rows, batch_size=len(batch.index), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """The same loss, with draws that are the same at every validation."""
        self._sums = summed(self._sums, self._losses(batch, "validation")[1])

    def test_step(self, batch: Batch) -> None:
        """As validation."""
        self._sums = summed(self._sums, self._losses(batch, "test")[1])

    def on_validation_epoch_start(self) -> None:
        """Begin to sum."""
        self._sums = {}

    def setup(self, stage: str) -> None:
        """What was measured of the weights that training starts from says nothing of those that it makes."""
        if stage == "fit":
            self.clean_std = {}

    def on_test_epoch_start(self) -> None:
        """As validation."""
        self._sums = {}

    def on_validation_epoch_end(self) -> None:
        """The loss of all samples, however they are split into batches and over processes."""
        self._log_sums("validation")

    def on_test_epoch_end(self) -> None:
        """As validation."""
        self._log_sums("test")

    def _log_sums(self, stage: str) -> None:
        if not self._sums:
            return
        pairs = self.trainer.strategy.reduce(
            torch.stack([torch.stack(row) for row in self._sums.values()]), None, "sum"
        )
        losses = {key: (error, count) for key, (error, count) in zip(self._sums, pairs, strict=True)}
        self.log(f"{stage}/loss", self.objective.total(losses), prog_bar=True, sync_dist=True)
        self.log_dict({f"{stage}/{key}": mean_of(*row) for key, row in losses.items()}, sync_dist=True)

    def _losses(self, batch: Batch, stage: str) -> tuple[Tensor, Losses]:
        return self.objective(self.latents(batch, stage), batch, self._network_for(batch), stage)

    def _network_for(self, batch: Batch) -> Network:
        def network(latents: Latents, times: Times, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if self.objective.drops:
                return self.network_on_kept(latents, times, kept, batch.conditions)
            return self.network(latents, times, batch.conditions)

        return network

    @property
    def clean_std(self) -> dict[str, CleanStd]:
        """Full stream name → how far its clean estimates are from the clean values; see `measure_clean_std`."""
        return {key: row for process in self._processes.values() for key, row in process.clean_std.items()}

    @clean_std.setter
    def clean_std(self, tables: Mapping[str, CleanStd]) -> None:
        for name, process in self._processes.items():
            process.clean_std = {key: row for key, row in tables.items() if modality_of(key) == name}

    @torch.no_grad()
    def measure_clean_std(
        self, batches: Iterable[Batch], *, num_bins: int = 32, total: Callable[[Tensor], Tensor] = Tensor.clone
    ) -> None:
        """Measure, on held-out data, what the solver ``analytic`` needs of each stream, and keep it in `clean_std`.

        Each modality's times are uniform and independent: the errors are averages over how noisy the others are.

        Args:
            batches: of held-out data, on this module's device.
            num_bins: equal stretches of time, over each of which an error is averaged.
            total: of sums over all processes, where there are several.
        """
        training, sums = self.training, dict[str, Tensor]()
        self.eval()
        for batch in batches:
            latents = self.latents(batch, "validation")
            for key, row in self.objective.clean_errors(latents, batch, self._network_for(batch), num_bins).items():
                sums[key] = sums.get(key, 0) + row
        self.train(training)
        tables = {key: CleanStd.of_sums(total(row)) for key, row in sums.items()}
        self.clean_std = {key: table for key, table in tables.items() if table}

    def configure_callbacks(self) -> list[pl.Callback]:
        """What every training needs, unless the trainer was given its own."""
        given = self.trainer.callbacks  # type: ignore[attr-defined]
        needed = (SkipNonFinite, LogSpikes, Resume, DecayInTime, Accumulation, Sealed, Signals, CountLost)
        return [make() for make in needed if not any(isinstance(row, make) for row in given)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to keep weights that are not finite.

        Raises:
            NonFiniteError: if they are not.
        """
        check_finite(self._trainer, self.state_dict(), "the checkpoint")

    def configure_optimizers(self) -> Any:
        """Optimizer over what is trainable, and its schedule by step."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the trainer says."""
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    # --- the network ---

    def network(
        self, latents: Latents, times: Times, conditions: Conditions | None = None, **more: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The backbone's predictions: it sees each state as its process shows it, in the dtype of its weights."""
        dtype = next(self.backbone.parameters()).dtype
        seen = {
            key: cast(self._process(key).view(value, times[modality_of(key)]), dtype) for key, value in latents.items()
        }
        prediction: dict[str, Tensor] = self.backbone(seen, times, **(conditions or {}), **more)
        return prediction

    def network_on_kept(
        self, latents: Latents, times: Times, kept: Mapping[str, Tensor], conditions: Conditions | None = None
    ) -> dict[str, Tensor]:
        """`network` on each sample's kept modalities alone; zero where a sample dropped the modality."""
        if self.backbone.takes_kept:
            prediction = self.network(latents, times, conditions, kept=kept)
            there = {key: over(kept[modality_of(key)], value) for key, value in prediction.items()}
            return {key: value.where(there[key], torch.zeros_like(value)) for key, value in prediction.items()}
        prediction = {key: self._nothing(key, value) for key, value in latents.items()}
        prediction = predicted_on_kept(self.network, prediction, latents, times, kept, conditions or {})
        # A parameter that no sample used still takes part: DDP and FSDP2 wait for its gradient.
        nothing = sum((parameter.sum() * 0 for parameter in self.parameters()), torch.tensor(0.0))
        return {key: value + nothing for key, value in prediction.items()}

    def _process(self, key: str) -> ForwardProcess:
        return self.modalities[modality_of(key)].process

    def _nothing(self, key: str, x: Tensor) -> Tensor:
        """A prediction of zeros for a stream's state."""
        port = self.modalities[modality_of(key)].ports[stream_of(key)]
        dtype = x.dtype if x.is_floating_point() else torch.float32
        return torch.zeros(len(x), *port.predicted_shape(tuple(x.shape[1:])), dtype=dtype, device=x.device)

    def predict(self, latents: Latents, times: Times, conditions: Conditions | None = None) -> dict[str, Tensor]:
        """The network as a `Predictor`: clean estimates, in single precision at least, whatever it computes in."""
        prediction = self.network(latents, times, conditions)
        return {
            key: self._process(key).clean(latents[key], at_least_single(value), times[modality_of(key)])
            for key, value in prediction.items()
        }

    # --- codecs ---

    @property
    def device(self) -> torch.device:
        """Where the parameters are. Lightning's own says where they were last sent, also if that failed."""
        return next(self.parameters()).device

    def codec(self, name: str) -> Any:
        """A modality's codec, on this module's device.

        Raises:
            ValueError: if there is no such modality; says which there are.
        """
        self._check_known(name)
        return self.modalities[name].codec.to(self.device)

    def _check_known(self, name: str) -> None:
        if name not in self.modalities:
            rest = meant(str(name), self.modalities, then=f"known: {', '.join(self.modalities)}")
            raise ValueError(f"unknown modality {name!r}{rest}")

    def latents(self, batch: Batch, stage: str = "train") -> dict[str, Tensor]:
        """Raw → stored → latent, whatever state the batch is in: ``"<modality>.<stream>" -> [b, ...]``."""
        latents: dict[str, Tensor] = {}
        for name in self.modalities:
            stored = of_modality(batch.stored, name)
            if not stored:
                with torch.no_grad(), full_precision(self.device):
                    stored = self.codec(name).encode(batch.raws[name])
            latents |= self._latent(name, stored, batch.index, f"{stage} posterior", batch.step, self.objective.seed)
        return latents

    def _latent(
        self, name: str, stored: Mapping[str, Tensor], index: Tensor, purpose: str, step: int, seed: int
    ) -> dict[str, Tensor]:
        def draw(stream: str, shape: tuple[int, ...]) -> Tensor:
            return randomness.normal(seed, purpose, f"{name}.{stream}", step, index, shape[1:])

        codec = self.modalities[name].codec
        with full_precision(self.device):
            latent = codec.latent(stored, draw)
        check_latent(codec, latent)
        return {f"{name}.{stream}": value.to(index.device) for stream, value in latent.items()}

    @torch.no_grad()
    def encode(self, raws: Mapping[str, Sequence[Raw]], *, seed: int = 0, first_index: int = 0) -> dict[str, Tensor]:
        """Raw samples → latents ``"<modality>.<stream>" -> [b, ...]``.

        Args:
            raws: modality → list of samples.
            seed: of what codecs draw.
            first_index: of the first sample, among those of a larger run.

        Raises:
            ValueError: if a modality is not known, a sample is not of its kind, or there are more of one than of
                another; names it.
        """
        latents: dict[str, Tensor] = {}
        for name, values in raws.items():
            self._check_known(name)
            check_raws(name, self.modalities[name].codec, values)
        if len({len(values) for values in raws.values()}) > 1:
            rows = ", ".join(f"{len(values)} of {name}" for name, values in raws.items())
            raise ValueError(f"a sample has one value of each modality, but there are {rows}; encode them one by one")
        for name, values in raws.items():
            index = torch.arange(first_index, first_index + len(values), device=self.device)
            with full_precision(self.device):
                stored = self.codec(name).encode(values)
            latents |= self._latent(name, stored, index, "sample posterior", 0, seed)
        return latents

    @torch.no_grad()
    def decode(self, latents: Latents, names: Iterable[str]) -> dict[str, list[Raw]]:
        """Latents → raw samples of some modalities.

        Args:
            latents: ``"<modality>.<stream>" -> [b, ...]``, all streams of these modalities.
            names: the modalities, or one.

        Raises:
            ValueError: if a modality is not known, or latents are lacking, of another shape or not finite.
        """
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            self._check_known(name)
        check_latents(latents, {key: row for key, row in self.shapes.items() if modality_of(key) in names})
        with full_precision(self.device):
            return {name: self.codec(name).decode(of_modality(latents, name)) for name in names}

    # --- sampling ---

    def sample(
        self,
        spec: TimestepSpec | str | Mapping[str, Any],
        given: Given | None = None,
        num: int | None = None,
        *,
        options: SamplingOptions | None = None,
        on_step: OnStep | None = None,
        latents: bool = False,
        states: Latents | None = None,
        against: Given | None = None,
        first_index: int = 0,
        **changes: Any,
    ) -> dict[str, Any]:
        """Sample what a timestep spec solves, as raw samples or as latents.

        Args:
            spec: ``"image | text"``, say; see `TimestepSpec`.
            given: modality → one raw sample, for all, or `num` of them; or full stream name → latents ``[b, ...]``.
            num: number of samples; as many as are given, or one.
            options: how to sample; as this model says (`sampling`) if not given.
            on_step: told of each step, counted over all batches; True ends its batch there.
            latents: whether to return latents, which can be given again, and not to decode.
            states: full stream name → ``[b, ...]``: states at the start of their paths, as an inversion returns them.
            against: of what is held, what guidance leads away from in place of T, given as `given` is.
            first_index: number of the first sample, whose noise it decides: a call of 10 gives the same as two of 5, of
                which the second has 5 here.
            **changes: options by name, in place of those of `options`: ``steps=20, guidance=2.0``; `SamplingOptions`
                explains each.

        Returns:
            Solved modality → list of `num` raw samples; with `latents`, full stream name → ``[num, ...]``.

        Raises:
            SpecError: if spec and given do not fit together.
            UnknownNameError: if a solver is not known.
        """
        options = SamplingOptions.changed(options or self.sampling, changes, "sample()")
        spec = TimestepSpec.parse(spec, self.modalities)
        more: dict[str, Any] = {"states": states, "against": against, "on_step": on_step, "first_index": first_index}
        if latents:
            return latents_of(self, spec, given or {}, num, options=options, **more)
        solved: dict[str, Any] = {name: [] for name in spec.solved}
        for row in batches(self, spec, given or {}, num, options, **more):
            for name, values in self.decode(row, spec.solved).items():
                solved[name] += values
        return solved

    def sample_latents(
        self,
        spec: TimestepSpec | str | Mapping[str, Any],
        supplied: Latents,
        *,
        num: int,
        options: SamplingOptions | None = None,
        **more: Any,
    ) -> dict[str, Tensor]:
        """`unidiff_core.sample` with this network: latents in, latents out, all `num` at once.

        Args:
            spec: as in `sample`.
            supplied: clean latents ``[b, ...]`` of what the spec holds, or starts below pure noise.
            num: samples b.
            options: how to sample.
            **more: what `unidiff_core.sample` takes besides, options by name among it.

        Raises:
            NonFiniteError: if a weight is NaN or infinite.
        """
        is_half = next(self.backbone.parameters()).dtype == torch.float16
        if name := non_finite(dict(self.named_parameters())):
            why = "too large for fp16; take bf16" if is_half else "there is nothing to sample from them"
            raise NonFiniteError(f"the weights are not finite, {name} for one: {why}")
        options = options or self.sampling
        values = more.pop("conditions", options.conditions)
        spec = TimestepSpec.parse(spec, self.modalities)
        empty = self._empty(spec, more.pop("empty", options.empty) or "", num)
        more["against"] = empty | dict(more.get("against") or {})
        conditions = conditions_of(values, self.backbone.conditions, num, self.device)
        training = self.training
        self.eval()
        try:
            found = sample(
                partial(self.predict, conditions=conditions),
                spec,
                processes=self._processes,
                shapes=self.shapes,
                num=num,
                supplied=supplied,
                options=replace(options, empty=None),
                device=self.device,
                **more,
            )
        finally:
            self.train(training)
        if is_half and (key := non_finite(found)):
            raise NonFiniteError(f"{key} is not finite: the network's numbers are too large for fp16; take bf16")
        return found

    @torch.no_grad()
    def _empty(self, spec: TimestepSpec, names: str, num: int) -> dict[str, Tensor]:
        """Latents of empty samples, of those of the named modalities that a spec holds."""
        latents: dict[str, Tensor] = {}
        for name in filter(None, map(str.strip, names.split(","))):
            if name not in self.modalities:
                raise SpecError(f"unknown modality {name!r} is to be empty; known: {', '.join(self.modalities)}")
            if name in spec.held:
                with full_precision(self.device):
                    stored = self.codec(name).encode_empty()
                index = torch.zeros(1, dtype=torch.int64, device=self.device)
                latents |= self._latent(name, stored, index, "sample posterior", 0, 0)
        return {key: value.expand(num, *value.shape[1:]) for key, value in latents.items()}

    # --- model directories ---

    @property
    def description(self) -> Description:
        """Everything of this model but its weights.

        Raises:
            ValueError: if the backbone is of a class that no plugin registered.
        """
        backbone = describe(self.backbone, load_plugins())
        default = SamplingOptions()
        rows = {row.name: getattr(self.sampling, row.name) for row in fields(SamplingOptions)}
        sampling = {name: value for name, value in rows.items() if value != getattr(default, name)}
        SamplingOptions.read(sampling)  # plain data alone
        return Description(
            self.modalities, backbone, self.objective.balance, self.licence, self.sources, self.clean_std, sampling
        )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        average: Mapping[str, Tensor] | None = None,
        training: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a model directory. Adapters are merged, so that whoever loads it need not know of them.

        Where parameters are distributed over processes, all processes call it and the first one writes.

        Args:
            folder: made if it is not there.
            average: the EMA's parameters by name.
            training: what the weights are of, for the record: ``step`` and ``checkpoint``.
            overwrite: whether it may take the place of a model that is there.

        Raises:
            ValueError: if there is a model, or a configuration of something else, or if a codec, process or backbone is
                of a class that no plugin registered.
            NonFiniteError: if weights or average are not finite; what was there stays.
        """
        check_finite(self._trainer, {**self.state_dict(), **(average or {})}, f"the model directory {folder}")
        writes = not self._trainer or self.trainer.is_global_zero
        state = gathered(self.state_dict(), keeps=writes)
        averaged = gathered(average or {}, keeps=writes)
        if writes:
            mean = merged(state | averaged, self) if averaged else None
            save(folder, self.description, merged(state, self), average=mean, training=training, overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        weights: Literal["ema", "model"] = "ema",
        allow_hub: bool = False,
        precision: Precision = "fp32",
    ) -> UniDiffuser:
        """Read a model directory, on the CPU, for sampling or for further training.

        Where it records the licence of its weights, that is logged, and kept with whatever is saved from the model.

        Args:
            folder: the directory, or a repository of the Hugging Face hub, ``user/name``.
            weights: the average if there is one, or the model's own.
            allow_hub: whether it, and the weights of codecs, may be fetched from the hub.
            precision: of the network; states, solvers, processes and codecs stay in single precision. Half as much
                memory in ``bf16`` and ``fp16``; ``benchmarks/precision.py`` says what it costs in accuracy.

        Raises:
            ModelDirectoryError: if a file is missing or damaged, or the weights do not fit the configuration.
            ValueError: if there is no such precision.
            UnknownNameError: if the configuration names a class that no installed plugin registered.
        """
        dtype = dtype_of(precision)
        folder = located(folder, allow_hub=allow_hub)
        model = cls.from_description(read_description(folder, allow_hub=allow_hub), is_empty=True)
        model.backbone.to(dtype)  # before: each weight is read into this type, and no copy of all is in the other
        load_weights(model, folder, weights)
        return model.eval()

    @classmethod
    def from_description(cls, description: Description, *, is_empty: bool = False) -> UniDiffuser:
        """The model that is described, freshly initialised, or without memory for the backbone's weights."""
        make = partial(description.make_backbone, is_empty=is_empty)
        model = cls(description.modalities, make, balance=description.balance)
        model.licence, model.sources = description.licence, description.sources
        model.clean_std, model.sampling = dict(description.clean_std), _sampling_of(description)
        return model


def _sampling_of(description: Description) -> SamplingOptions:
    try:
        return SamplingOptions.read(description.sampling)
    except SpecError as error:
        raise ModelDirectoryError(f"the section `sampling` of a model directory: {error}") from error
