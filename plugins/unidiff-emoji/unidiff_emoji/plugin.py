"""What this distribution registers."""

from unidiff_core import Registry, hookimpl


@hookimpl
def unidiff_register(registry: Registry) -> None:
    """Register the source, the judge and the metrics."""
    from unidiff_emoji.judge import EmojiJudge
    from unidiff_emoji.metric import Colouring, LineKept, RightBase
    from unidiff_emoji.source import EmojiSource

    for part in (EmojiSource, EmojiJudge, Colouring, LineKept, RightBase):
        registry.add(part)
