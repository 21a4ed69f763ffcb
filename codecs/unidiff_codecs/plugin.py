"""Registers the shipped codecs, as anyone's plugin would, and the converters of released weights."""

from __future__ import annotations

from unidiff_core import Registry, hookimpl


@hookimpl
def unidiff_register(registry: Registry) -> None:
    """Add codecs, what trains them, where pairs come from, how captions are cleaned, and the converters."""
    from unidiff_codecs import training
    from unidiff_codecs.caption import CaptionCleaner
    from unidiff_codecs.coco import CocoSource
    from unidiff_codecs.image import ImageCodec
    from unidiff_codecs.released import DiffusersFolder, ReleasedFolder
    from unidiff_codecs.source import DatasetSource, FolderSource
    from unidiff_codecs.table import NumbersCodec, TableSource
    from unidiff_codecs.text import TextCodec
    from unidiff_codecs.tokens import TokensCodec

    codecs = (ImageCodec, TextCodec, TokensCodec, NumbersCodec)
    sources = (FolderSource, DatasetSource, CocoSource, TableSource)
    for cls in (*codecs, *sources, CaptionCleaner, ReleasedFolder, DiffusersFolder):
        registry.add(cls)
    for name in training.__all__:
        registry.add(getattr(training, name))
