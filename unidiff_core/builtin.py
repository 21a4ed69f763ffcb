"""What core registers, through the hook that every plugin uses: who adds a part of core adds it here, nowhere else."""

from __future__ import annotations

from unidiff_core.codec.label import LabelCodec
from unidiff_core.data.filter import Filter
from unidiff_core.data.module import OrderedData
from unidiff_core.data.samples import RawSamples, SourceSamples, StoredSamples
from unidiff_core.evaluation.copies import Copies
from unidiff_core.evaluation.features import JudgeFeatures, LatentFeatures
from unidiff_core.evaluation.frechet import Frechet
from unidiff_core.evaluation.frequencies import Frequencies
from unidiff_core.evaluation.kernel import Kernel
from unidiff_core.evaluation.labels import LabelMetric
from unidiff_core.evaluation.manifold import Manifold
from unidiff_core.evaluation.nearness import Nearness
from unidiff_core.evaluation.show import ShowSamples
from unidiff_core.evaluation.torch_metric import TorchMetric
from unidiff_core.evaluation.variety import Variety
from unidiff_core.foundation.plugin import hookimpl
from unidiff_core.foundation.registry import Registry
from unidiff_core.network.lora import LoRA
from unidiff_core.network.uvit import UViT
from unidiff_core.process.cold.degradation import BlockMean, Blur, Crop
from unidiff_core.process.cold.process import Cold
from unidiff_core.process.cold.solver import Improved, Naive
from unidiff_core.process.edited.process import Edited
from unidiff_core.process.edited.solver import Reedit, Revert
from unidiff_core.process.encoded.process import Encoded
from unidiff_core.process.gaussian.diffusers_solver import DiffusersSolver
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import Flow, ScaledLinear
from unidiff_core.process.gaussian.solver import DDIM, DDPM, Analytic, DPMpp2M, DPMpp3M, Family, Heun, Renoise
from unidiff_core.process.masked.process import Masked
from unidiff_core.process.masked.solver import Certain, Confident, Random
from unidiff_core.training.checkpoint import ModelDirectory
from unidiff_core.training.clean_std import MeasureCleanStd
from unidiff_core.training.ema import EMA
from unidiff_core.training.finite import SkipNonFinite
from unidiff_core.training.fsdp import FSDP2
from unidiff_core.training.law import Atoms, Independent, Mixture, Shared, Uniform
from unidiff_core.training.learning_rate import Plateau, Warmup
from unidiff_core.training.log import LogTraining
from unidiff_core.training.resume import Resume
from unidiff_core.training.signals import Signals

PROCESSES = (Gaussian, Flow, ScaledLinear, Cold, Blur, BlockMean, Crop, Masked, Edited, Encoded)
SOLVERS = (
    DDIM,
    DDPM,
    Renoise,
    Family,
    Analytic,
    Naive,
    Improved,
    DPMpp2M,
    DPMpp3M,
    Heun,
    DiffusersSolver,
    Random,
    Certain,
    Confident,
    Revert,
    Reedit,
)
NETWORKS = (UViT, LoRA)
TRAINING = (
    Uniform,
    Atoms,
    Shared,
    Independent,
    Mixture,
    EMA,
    MeasureCleanStd,
    ModelDirectory,
    Resume,
    Signals,
    SkipNonFinite,
    Warmup,
    Plateau,
    FSDP2,
    LogTraining,
)
DATA = (OrderedData, StoredSamples, RawSamples, SourceSamples, Filter)
METRICS = (LabelMetric, Frequencies, Frechet, Kernel, Manifold, Variety, Copies, Nearness, TorchMetric)
EVALUATION = (*METRICS, JudgeFeatures, LatentFeatures, ShowSamples)
CODECS = (LabelCodec,)


@hookimpl
def unidiff_register(registry: Registry) -> None:
    """Add every part of core that a recipe or a model directory names."""
    for cls in (*PROCESSES, *SOLVERS, *NETWORKS, *TRAINING, *DATA, *EVALUATION, *CODECS):
        registry.add(cls)
