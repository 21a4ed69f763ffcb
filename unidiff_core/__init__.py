"""unidiff: one transformer learns every marginal, conditional and joint distribution of N modalities.

Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unidiff_core.codec import Codec
    from unidiff_core.modality import Modality
    from unidiff_core.plugin import hookimpl
    from unidiff_core.predictor import Predictor
    from unidiff_core.sampling import sample
    from unidiff_core.schedule import NoiseSchedule
    from unidiff_core.spec import TimestepSpec
    from unidiff_core.stream import Stream
    from unidiff_core.system import UniDiffuser

__all__ = [
    "Codec",
    "Modality",
    "NoiseSchedule",
    "Predictor",
    "Stream",
    "TimestepSpec",
    "UniDiffuser",
    "hookimpl",
    "sample",
]

_HOMES = {
    "Codec": "codec",
    "Modality": "modality",
    "NoiseSchedule": "schedule",
    "Predictor": "predictor",
    "Stream": "stream",
    "TimestepSpec": "spec",
    "UniDiffuser": "system",
    "hookimpl": "plugin",
    "sample": "sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unidiff_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unidiff_core.{_HOMES[name]}"), name)
