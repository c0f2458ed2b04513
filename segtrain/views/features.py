"""Perturbations of what the encoder made of the images: nothing moves, so the target stays as it is."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from segtrain.models.segnet import Features
from segtrain.transforms.featurewise import add_uniform_noise, complementary_gates, draw_uniform, drop, drop_attended
from segtrain.transforms.warps import Rngs
from synth.core.config import Settings


class FeatureDropout(Settings):
    """Slot member `feature_dropout`: a share `p` of the channels, or of all values, is 0 and the rest larger.

    On whole channels it is UniMatch's view (Yang et al. 2023).
    """

    p: float = Field(0.5, ge=0, lt=1)
    channels: bool = True

    def __call__(self, features: Features, rngs: Rngs) -> Features:
        """Returns the features (B, c, h, w) that are left."""
        return drop(features, draw_uniform(features, rngs, channels=self.channels), p=self.p)


class FeatureNoise(Settings):
    """Slot member `feature_noise`: every value changes by a share of itself, uniform in [-limit, limit) (CCT)."""

    limit: float = Field(0.3, ge=0, le=1)

    def __call__(self, features: Features, rngs: Rngs) -> Features:
        """Returns noisy features (B, c, h, w)."""
        return add_uniform_noise(features, draw_uniform(features, rngs), limit=self.limit)


class AttentionDrop(Settings):
    """Slot member `attention_drop`: the most active places go, those above a share of the largest activity (CCT).

    Attributes:
        low, high: between which that share is drawn for each image; 1 drops nothing.
    """

    low: float = Field(0.6, ge=0, le=1)
    high: float = Field(0.9, ge=0, le=1)

    def __call__(self, features: Features, rngs: Rngs) -> Features:
        """Returns the features (B, c, h, w) that are left."""
        drawn = torch.stack([torch.rand((), generator=rng) for rng in rngs])
        return drop_attended(features, self.low + (self.high - self.low) * drawn)


class ComplementaryDropout(Settings):
    """Slot member `complementary_dropout`: of two views of an image each sees the channels that the other does not.

    Attributes:
        half: which of the two this view is. p: share of images that lose channels at all.
    """

    draws: ClassVar[str] = "complementary"
    half: Literal["first", "second"] = "first"
    p: float = Field(0.5, ge=0, le=1)

    def __call__(self, features: Features, rngs: Rngs) -> Features:
        """Returns the features (B, c, h, w), half of the channels 0 and the others twice as large."""
        gates = complementary_gates(features, rngs, p=self.p)
        return [f * (g if self.half == "first" else 2 - g) for f, g in zip(features, gates, strict=True)]


FEATURES: dict[str, type[Settings]] = {
    "feature_dropout": FeatureDropout, "feature_noise": FeatureNoise, "attention_drop": AttentionDrop,
    "complementary_dropout": ComplementaryDropout,
}
"""Perturbations of this module by the name that method files use."""
