"""Symbols as vectors that are learned, under Gaussian noise."""
