"""What this distribution registers."""

from unidiff_core.foundation.plugin import hookimpl
from unidiff_core.foundation.registry import Registry


@hookimpl
def unidiff_register(registry: Registry) -> None:
    """Register the source and the judge."""
    from unidiff_digits.judge import DigitsJudge
    from unidiff_digits.source import DigitsSource

    registry.add(DigitsSource)
    registry.add(DigitsJudge)
