"""Registers the shipped codecs, as anyone's plugin would."""

from __future__ import annotations

from unidiff_core.plugin import Registry, hookimpl


@hookimpl
def unidiff_register(registry: Registry) -> None:
    """Add the image and the text codec, and where pairs come from and how captions are cleaned."""
    from unidiff_codecs.caption import CaptionCleaner
    from unidiff_codecs.image import ImageCodec
    from unidiff_codecs.source import DatasetSource, FolderSource
    from unidiff_codecs.text import TextCodec

    for cls in (ImageCodec, TextCodec, CaptionCleaner, FolderSource, DatasetSource):
        registry.add(cls)
