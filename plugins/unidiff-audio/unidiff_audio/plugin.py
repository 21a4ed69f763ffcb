"""What this distribution registers."""

from unidiff_core.foundation.plugin import hookimpl
from unidiff_core.foundation.registry import Registry


@hookimpl
def unidiff_register(registry: Registry) -> None:
    """Register the codecs, and the vocoder that a model directory may name."""
    from unidiff_audio.codec import AudioCodec
    from unidiff_audio.neural import NeuralAudioCodec
    from unidiff_audio.vocoder import GriffinLimVocoder

    registry.add(AudioCodec)
    registry.add(NeuralAudioCodec)
    registry.add(GriffinLimVocoder)
