"""unidiff: one transformer learns every marginal, conditional and joint distribution of N modalities.

What a user calls, and what a plugin's author subclasses or calls, is importable from here. Names load on first use, so
that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unidiff_core.application.chain import chain
    from unidiff_core.application.inpainting import inpaint
    from unidiff_core.application.interpolation import interpolate
    from unidiff_core.application.moment import Moment, film
    from unidiff_core.application.selection import best_of
    from unidiff_core.application.variation import vary
    from unidiff_core.codec.codec import Codec, Draw, EmptyRaw, Raw
    from unidiff_core.codec.frozen import FrozenCodec
    from unidiff_core.codec.label import LabelCodec
    from unidiff_core.codec.training import CodecTraining, NetworkTraining, OnePass
    from unidiff_core.codec.waveform import Waveform
    from unidiff_core.data.cleaner import Cleaner
    from unidiff_core.data.columns import Batches, Columns, ShardData
    from unidiff_core.data.module import OrderedData
    from unidiff_core.data.salvage import read_having, read_shards
    from unidiff_core.data.samples import Samples
    from unidiff_core.data.shard import Members, write_shards
    from unidiff_core.data.source import Source
    from unidiff_core.evaluation.estimate import Estimate
    from unidiff_core.evaluation.judge import Judge
    from unidiff_core.evaluation.metric import Drawn, Hits, Measured, Metric, Reference
    from unidiff_core.foundation.batch import Batch
    from unidiff_core.foundation.plugin import hookimpl
    from unidiff_core.foundation.randomness import Draws
    from unidiff_core.foundation.registry import Registry
    from unidiff_core.foundation.stream import Stream
    from unidiff_core.modality import Modality
    from unidiff_core.network.backbone import Backbone, Port
    from unidiff_core.process.edited.process import Edited
    from unidiff_core.process.edited.solver import EditedSolver
    from unidiff_core.process.encoded.process import Encoded
    from unidiff_core.process.gaussian.diffusers_solver import DiffusersSolver
    from unidiff_core.process.gaussian.process import Gaussian
    from unidiff_core.process.gaussian.schedule import NoiseSchedule
    from unidiff_core.process.gaussian.solver import GaussianSolver
    from unidiff_core.process.masked.process import Masked
    from unidiff_core.process.masked.solver import MaskedSolver
    from unidiff_core.process.process import Corruption, ForwardProcess, Solver, Step
    from unidiff_core.sampling.estimate import Gradient
    from unidiff_core.sampling.fill import fill_in
    from unidiff_core.sampling.guidance import Guidance
    from unidiff_core.sampling.loop import StepReport, sample
    from unidiff_core.sampling.options import SamplingOptions
    from unidiff_core.sampling.predictor import Predictor
    from unidiff_core.sampling.spec import SpecError, TimestepSpec
    from unidiff_core.serialization.converter import Converter
    from unidiff_core.system import UniDiffuser
    from unidiff_core.training.law import Each, TimestepLaw
    from unidiff_core.training.start import Start

_HOMES = {
    "application.chain": ("chain",),
    "application.inpainting": ("inpaint",),
    "application.interpolation": ("interpolate",),
    "application.moment": ("Moment", "film"),
    "application.selection": ("best_of",),
    "application.variation": ("vary",),
    "codec.codec": ("Codec", "Draw", "EmptyRaw", "Raw"),
    "codec.frozen": ("FrozenCodec",),
    "codec.label": ("LabelCodec",),
    "codec.training": ("CodecTraining", "NetworkTraining", "OnePass"),
    "codec.waveform": ("Waveform",),
    "data.cleaner": ("Cleaner",),
    "data.columns": ("Batches", "Columns", "ShardData"),
    "data.salvage": ("read_having", "read_shards"),
    "data.module": ("OrderedData",),
    "data.samples": ("Samples",),
    "data.shard": ("Members", "write_shards"),
    "data.source": ("Source",),
    "evaluation.estimate": ("Estimate",),
    "evaluation.judge": ("Judge",),
    "evaluation.metric": ("Drawn", "Hits", "Measured", "Metric", "Reference"),
    "foundation.batch": ("Batch",),
    "foundation.plugin": ("hookimpl",),
    "foundation.randomness": ("Draws",),
    "foundation.registry": ("Registry",),
    "foundation.stream": ("Stream",),
    "modality": ("Modality",),
    "network.backbone": ("Backbone", "Port"),
    "process.edited.process": ("Edited",),
    "process.edited.solver": ("EditedSolver",),
    "process.encoded.process": ("Encoded",),
    "process.gaussian.diffusers_solver": ("DiffusersSolver",),
    "process.gaussian.process": ("Gaussian",),
    "process.gaussian.schedule": ("NoiseSchedule",),
    "process.gaussian.solver": ("GaussianSolver",),
    "process.masked.process": ("Masked",),
    "process.masked.solver": ("MaskedSolver",),
    "process.process": ("Corruption", "ForwardProcess", "Solver", "Step"),
    "sampling.estimate": ("Gradient",),
    "sampling.fill": ("fill_in",),
    "sampling.guidance": ("Guidance",),
    "sampling.loop": ("StepReport", "sample"),
    "sampling.options": ("SamplingOptions",),
    "sampling.predictor": ("Predictor",),
    "sampling.spec": ("SpecError", "TimestepSpec"),
    "serialization.converter": ("Converter",),
    "system": ("UniDiffuser",),
    "training.law": ("Each", "TimestepLaw"),
    "training.start": ("Start",),
}
"""Module → the names that are importable from here."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'unidiff_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unidiff_core.{_HOME_OF[name]}"), name)
