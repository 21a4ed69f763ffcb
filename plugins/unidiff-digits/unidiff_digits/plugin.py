"""What this distribution registers."""

from unidiff_core import Registry, hookimpl


@hookimpl
def unidiff_register(registry: Registry) -> None:
    """Register the source and the judge."""
    from unidiff_digits.judge import DigitsJudge
    from unidiff_digits.source import DigitsSource

    registry.add(DigitsSource)
    registry.add(DigitsJudge)
