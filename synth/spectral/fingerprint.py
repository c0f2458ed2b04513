"""What a decoder leaves in a spectrum: bands that are too weak or strong, and peaks where upsampling repeats itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from synth.spectral.borders import Border
from synth.spectral.transform import amplitude_of, check_unit, open_spectrum

N_BANDS = 10
"""Bands between the lowest frequency and 0.5 cycles per pixel, equally wide in its logarithm."""
HALVINGS = 3
"""Peaks are looked for at 0.5, 0.25 and 0.125 cycles per pixel: what one, two and three doublings leave."""
WINDOW = 0.03
"""Reach of a peak's window, cycles per pixel."""
LEAST = 16
"""Coefficients that a peak is compared with, at least."""


PERIODS = (2, 4, 8)
"""Pixels after which one, two and three doublings repeat themselves."""
LEAST_STEP = 1e-3
"""Added to mean steps between neighbours, unit space: an eighth of a grey level, so that flat images have no comb."""


@dataclass(frozen=True)
class Places:
    """Which coefficients of a half spectrum make which feature.

    Attributes:
        bands: (N_BANDS, h * f), shares that sum to 1. peaks, around: (P, h * f), the same for each peak and for what it
            is compared with. frequencies: middle of each band, cycles per pixel. names: of peaks, then of combs.
    """

    bands: torch.Tensor
    peaks: torch.Tensor
    around: torch.Tensor
    frequencies: tuple[float, ...]
    names: tuple[str, ...]


@lru_cache(maxsize=8)
def places_of(shape: tuple[int, int], device: str = "cpu") -> Places:
    """Returns the places of bands and peaks in the half spectrum of images of `shape` (h, w)."""
    fy, fx = torch.fft.fftfreq(shape[0]).abs()[:, None], torch.fft.rfftfreq(shape[1])[None]
    radius = torch.hypot(fy, fx)
    edges = torch.logspace(0, 1, N_BANDS + 1, base=0.5 * min(shape) / 2).mul_(2 / min(shape))
    bands = torch.stack([(radius >= low) & (radius < high) for low, high in zip(edges[:-1], edges[1:], strict=True)])
    points = [(y * p, x * p) for p in (0.5 / 2**k for k in range(HALVINGS)) for y, x in ((0, 1), (1, 0), (1, 1))]
    windows = torch.stack([(fy - y).abs().maximum((fx - x).abs()) <= WINDOW for y, x in points])
    around = torch.stack([_like(radius, (y * y + x * x) ** 0.5, windows.any(0)) for y, x in points])
    shares = [_shares(region).to(device) for region in (bands, windows, around)]
    return Places(*shares, tuple((edges[:-1] * edges[1:]).sqrt().tolist()),
                  (*(f"peak at {y:g}, {x:g}" for y, x in points), *(f"comb of {n} px" for n in PERIODS)))


def _shares(regions: torch.Tensor) -> torch.Tensor:
    flat = regions.flatten(1).float()
    return flat / flat.sum(1, keepdim=True).clamp_min(1)


def _like(radius: torch.Tensor, wanted: float, windows: torch.Tensor) -> torch.Tensor:
    # As far from the middle as a peak, but in other directions; in the corners there are none, so nearer ones too.
    reach = WINDOW
    while (found := ((radius - wanted).abs() <= reach) & ~windows).sum() < LEAST:
        reach += WINDOW / 2
    return found


@dataclass(frozen=True)
class Fingerprint:
    """Natural logarithms: of the mean amplitude in each band, (B, N_BANDS), and of each mark of an upsampling, (B, P):
    how far a peak stands out of what lies around it, then how strong a comb is. Amplitudes are the channels' mean."""

    bands: torch.Tensor
    peaks: torch.Tensor

    def features(self) -> torch.Tensor:
        """Returns (B, N_BANDS + P): the bands without their mean, so that contrast is of no account, and the marks."""
        return torch.cat([self.bands - self.bands.mean(1, keepdim=True), self.peaks], dim=1)


def combs(images: torch.Tensor) -> torch.Tensor:
    """Returns how unevenly steps between neighbours are shared among the phases of each period, (B, len(PERIODS)).

    Of unit images (B, C, H, W), that is the logarithm of the largest phase's mean absolute step over the smallest
    one's, mean of rows and columns. Repeated pixels have steps at every other place alone. Amplitudes hardly
    show that, for it is a matter of phases: the coefficients at f and f + 1 / period belong together. A real image
    knows no phase, whatever it shows.
    """
    found = []
    for axis in (-1, -2):
        steps = images.diff(dim=axis).abs().mean((1, axis - 1 if axis == -1 else -1))  # (B, length - 1)
        for period in PERIODS:
            whole = steps[:, :steps.shape[1] // period * period].unflatten(1, (-1, period)).mean(1) + LEAST_STEP
            found.append((whole.amax(1) / whole.amin(1)).log())
    return torch.stack(found, 1).view(len(images), 2, len(PERIODS)).mean(1)


@torch.no_grad()
def fingerprint(images: torch.Tensor) -> Fingerprint:
    """Returns the fingerprint of unit images (B, C, H, W); dark frames are filled before, and count nowhere.

    An upsampling by 2 repeats the low frequencies around 0.5 cycles per pixel on the axes and in the corner, and what
    filter follows it seldom takes them all away (Odena et al. 2016 on checkerboards; Durall et al. 2020 on spectra).

    Raises:
        UserError: if they are no unit images.
    """
    check_unit(images)
    bands, peaks = [], []
    for image in images.split(1):  # each alone, so that no score depends on what else is in a batch
        spectrum = open_spectrum(image, Border())
        amplitude = amplitude_of(spectrum.coefficients).mean(1).flatten(1)
        places = places_of(spectrum.shape, str(image.device))
        level = [(amplitude @ share.T).clamp_min(1e-6).log() for share in (places.bands, places.peaks, places.around)]
        bands.append(level[0].cpu())
        peaks.append(torch.cat([level[1] - level[2], combs(image.float())], dim=1).cpu())
    return Fingerprint(torch.cat(bands), torch.cat(peaks))
