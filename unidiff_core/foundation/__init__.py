"""What every room stands on: time, latents, streams, randomness, the registry and its plugins, errors, whole files."""
