"""What this distribution registers."""

from unidiff_core import Registry, hookimpl


@hookimpl
def unidiff_register(registry: Registry) -> None:
    """Register the codecs, the vocoder that a model directory may name, and what trains the autoencoder."""
    from unidiff_audio.codec import AudioCodec
    from unidiff_audio.neural import NeuralAudioCodec
    from unidiff_audio.training import AudioData, MelAutoencoderTraining
    from unidiff_audio.vocoder import GriffinLimVocoder

    for cls in (AudioCodec, NeuralAudioCodec, GriffinLimVocoder, MelAutoencoderTraining, AudioData):
        registry.add(cls)
