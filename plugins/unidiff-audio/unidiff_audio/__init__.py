"""Sound as a modality: codecs between waveforms and latents."""
