"""Symbols that are hidden, and revealed."""
