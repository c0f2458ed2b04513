"""Standardisation of images, as nnU-Net does it: by the labelled training images' foreground, or each by itself."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import nn

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.pairs import Arrays
from synth.core.space import pixels_to_unit

PERCENTILES = (0.5, 99.5)
LEAST_SD = 2 / 255
"""In unit space, one grey level of 8 bits: what varies less is not blown up to noise."""


class Fingerprint(Settings):
    """Grey values under the foreground, one number for each channel, as values of unit space.

    Attributes:
        low, high: percentiles 0.5 and 99.5. mean, sd: of all values, those beyond the percentiles too.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]


Standard = Fingerprint | Literal["image"] | None
"""By what a network standardises unit images: a fingerprint, each image's own grey values, or nothing."""


def percentile(counts: np.ndarray, share: float) -> float:
    """Returns the percentile `share` (0 to 100), linear between neighbours, of counts (L,) of the values 0, 1, ..."""
    place = (counts.sum() - 1) * share / 100
    first, last = np.searchsorted(counts.cumsum(), [np.floor(place), np.ceil(place)], side="right")
    return float(first + (last - first) * (place - np.floor(place)))


def measure(labelled: Arrays) -> Fingerprint:
    """Returns the fingerprint of the foreground, every class > 0 but ignore, of labelled images and of nothing else.

    Give it the training images alone: what it knows of others, a segmenter would.

    Raises:
        UserError: if the foreground of a channel has one grey value alone, by which nothing can be standardised.
    """
    counts = _counts(labelled)
    levels = np.arange(counts.shape[1])
    found: dict[str, list[float]] = {"low": [], "high": [], "mean": [], "sd": []}
    for channel, own in enumerate(counts):
        bounds = np.array([percentile(own, share) for share in PERCENTILES])
        unit = _unit(levels, labelled)
        mean = float((own * unit).sum() / own.sum())
        low, high = _unit(bounds, labelled).tolist()
        if low >= high:
            raise UserError(f"normalise=fingerprint: channel {channel}", rule="the labelled images' foreground has one "
                            "grey value there, by which nothing can be standardised", repair="take normalise=image")
        sd = float(np.sqrt((own * (unit - mean) ** 2).sum() / own.sum()))
        for name, value in (("low", low), ("high", high), ("mean", mean), ("sd", sd)):
            found[name].append(value)
    return Fingerprint(**{name: tuple(values) for name, values in found.items()})


def _unit(pixels: np.ndarray, labelled: Arrays) -> np.ndarray:
    return pixels_to_unit(pixels, labelled.info.intensity_range).numpy().astype(np.float64)


def _counts(labelled: Arrays) -> np.ndarray:
    # How often each grey value occurs, (C, levels): exact, and as large for one image as for thousands.
    n_levels = np.iinfo(labelled.info.dtype).max + 1
    counts = np.zeros((labelled.info.channels, n_levels), np.int64)
    for i in range(len(labelled)):
        mask = labelled.masks[i]
        values = labelled.images[i][:, (mask > 0) & (mask != IGNORE)]
        for own, channel in zip(counts, values, strict=True):
            own += np.bincount(channel, minlength=n_levels)
    return counts


class ByFingerprint(nn.Module):
    """Unit images clipped to the fingerprint's percentiles, minus its mean, over its standard deviation.

    It sits at a network's door, behind every augmentation, so that these, and every user of a segmenter, go on seeing
    unit images. Its numbers are settings, not weights: they lie in the segmenter's config.json.
    """

    def __init__(self, fingerprint: Fingerprint) -> None:
        super().__init__()
        for name in ("low", "high", "mean", "sd"):
            value = torch.tensor(getattr(fingerprint, name), dtype=torch.float32)[:, None, None]
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns standardised images (B, C, H, W) of unit images."""
        return (images.clamp(self.low, self.high) - self.mean) / self.sd


class ByImage(nn.Module):
    """Unit images minus their own mean, over their own standard deviation, channel by channel.

    What brightness, contrast and cast a device or a stain gives a whole image is gone before the network sees it, in
    training and at a new centre alike. So is what they say: where grey values have a meaning of their own, as in CT,
    take another. Of a patch or tile it is the patch's own mean and deviation.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns standardised images (B, C, H, W) of unit images; constant ones become 0."""
        sd, mean = torch.std_mean(images, dim=(2, 3), correction=0, keepdim=True)
        return (images - mean) / sd.clamp_min(LEAST_SD)


def door(standard: Standard) -> nn.Module | None:
    """Returns what standardises unit images (B, C, H, W) by `standard`, without weights; None for None."""
    if standard is None:
        return None
    return ByImage() if standard == "image" else ByFingerprint(standard)
