"""Coloured handwritten digits with captions: a source of samples and a judge of them."""
