"""For those who build on the core: the contract that a codec keeps to, exact predictors, and wrong models."""

from unidiff_core.testing.contract import ContractError, ContractReport, check_codec
from unidiff_core.testing.mixture import ExactMixture
from unidiff_core.testing.oracle import GaussianOracle
from unidiff_core.testing.zoo import Edited, Grid, Zoo

__all__ = ["ContractError", "ContractReport", "Edited", "ExactMixture", "GaussianOracle", "Grid", "Zoo", "check_codec"]
