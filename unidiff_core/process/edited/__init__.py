"""Symbols that are replaced by others, and put back."""
