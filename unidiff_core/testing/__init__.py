"""For those who build on the core: the contract that a codec keeps to, and an exact predictor."""

from unidiff_core.testing.contract import ContractError, ContractReport, check_codec
from unidiff_core.testing.oracle import GaussianOracle

__all__ = ["ContractError", "ContractReport", "GaussianOracle", "check_codec"]
