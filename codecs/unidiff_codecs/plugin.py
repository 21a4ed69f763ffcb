"""Registers the shipped codecs, as anyone's plugin would."""

from __future__ import annotations

from unidiff_core.plugin import Registry, hookimpl


@hookimpl
def unidiff_register(registry: Registry) -> None:
    """Add the image and the text codec."""
    from unidiff_codecs.image import ImageCodec
    from unidiff_codecs.text import TextCodec

    registry.add(ImageCodec)
    registry.add(TextCodec)
