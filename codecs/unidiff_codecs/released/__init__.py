"""UniDiffuser's released weights: their files, and the layout that diffusers gave the same weights."""

from __future__ import annotations

from unidiff_codecs.released.diffusers_folder import DiffusersFolder
from unidiff_codecs.released.released_folder import ReleasedFolder

__all__ = ["DiffusersFolder", "ReleasedFolder"]
