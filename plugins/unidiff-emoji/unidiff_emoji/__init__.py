"""OpenMoji in colour, in line and in words: a source, a judge and metrics for unidiff-core."""
