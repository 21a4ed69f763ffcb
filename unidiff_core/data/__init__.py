"""Data: sources and shards, what is kept and encoded of them, and batches in an order fixed by seed and step."""
