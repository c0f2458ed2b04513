"""The spectral generator: pairs whose labels are untouched and whose images have other amplitudes."""

from synth.appearance.pipeline import SpectralPipeline
from synth.appearance.settings import Operation, SpectralSettings

__all__ = ["Operation", "SpectralPipeline", "SpectralSettings"]
