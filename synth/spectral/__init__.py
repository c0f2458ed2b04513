"""The frequency prior of a set of images, and operations on the amplitudes of images. Masks are seen in fit alone."""

from synth.spectral.align import Alignment, AlignSettings, align_images, fit_alignment
from synth.spectral.bands import haar_low, low_pass, split_bands
from synth.spectral.borders import Border
from synth.spectral.distance import Distance
from synth.spectral.kspace import KspaceNoise, KspaceSettings, draw_kspace_noise, kspace_noise
from synth.spectral.match import Match, MatchSettings, draw_match, match_amplitude
from synth.spectral.prior import FrequencyPrior, has_prior
from synth.spectral.reweight import BandGains, BandSettings, draw_band_gains, reweight_as_far, reweight_bands
from synth.spectral.settings import PriorSettings
from synth.spectral.swap import MixSettings, Swap, SwapSettings, draw_mix, draw_swap, mix_amplitude, swap_amplitude
from synth.spectral.transform import Spectrum, open_spectrum

__all__ = [
    "AlignSettings", "Alignment", "align_images", "fit_alignment",
    "BandGains", "BandSettings", "Border", "Distance", "FrequencyPrior", "KspaceNoise", "KspaceSettings", "Match",
    "MatchSettings", "MixSettings", "PriorSettings", "Spectrum", "Swap", "SwapSettings", "draw_band_gains",
    "draw_kspace_noise", "draw_match", "draw_mix", "draw_swap", "haar_low", "has_prior", "kspace_noise",
    "low_pass", "match_amplitude", "mix_amplitude", "open_spectrum", "reweight_as_far", "reweight_bands",
    "split_bands", "swap_amplitude",
]
