"""Coloured handwritten digits with captions and dial tones: a source of samples and a judge of them."""
