"""Ground truth for those who build on the core: an exact predictor."""

from unidiff_core.testing.oracle import GaussianOracle

__all__ = ["GaussianOracle"]
