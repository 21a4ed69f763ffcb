"""The codecs that ship with unidiff: images and texts, as UniDiffuser encodes them."""
