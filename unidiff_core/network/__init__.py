"""Backbones: the contract, streams in and out of a sequence, the U-ViT, low-rank adapters."""
