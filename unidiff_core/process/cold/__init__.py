"""Cold diffusion: blur, block means, a growing mask in place of noise, or with it."""
