"""Raw ⇄ latent: the codec, its frozen networks and their weights, and what `fit-codec` trains."""
