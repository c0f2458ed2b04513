"""Frozen image features for perceptual losses and distances; nothing is ever downloaded.

A distance from these features is comparable only with itself: write `FeatureNet.name` beside every figure. It is not
LPIPS, whose backbone and learnt channel weights no package ships.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from synth.core.checks import UserError
from synth.core.pretrained import lite0_stages, lite0_weights, unit_to_lite0
from synth.core.rng import sample_rng

FeatureName = Literal["auto", "efficientnet_lite0", "random"]
"""auto = efficientnet_lite0 where its weights are installed, else random."""

RANDOM_WIDTHS = (16, 32, 64, 96)
AT_A_TIME = 32
"""Samples whose features are computed together where there are many."""


class FeatureNet(nn.Module):
    """Frozen stages of a convolutional network, at 1/2, 1/4, 1/8 and 1/16 of the resolution.

    Attributes:
        name: which filters these are.
    """

    def __init__(self, stages: list[nn.Module], *, name: str) -> None:
        super().__init__()
        self.name = name
        self.stages = nn.ModuleList(stages)
        # Depthwise convolutions on a CPU are several times slower in the default layout.
        self.to(memory_format=torch.channels_last).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FeatureNet:  # noqa: FBT001, FBT002 - torch's signature
        """Returns itself in evaluation mode whatever `mode`: the normalisation is frozen too."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the features of unit images (B, C, H, W), one (B, c, h, w) for each stage."""
        h = unit_to_lite0(images).contiguous(memory_format=torch.channels_last)
        features = []
        for stage in self.stages:
            h = stage(h)
            features.append(h)
        return features


def load_features(name: FeatureName = "auto") -> FeatureNet:
    """Returns frozen features; the global random state stays as it is.

    Raises:
        UserError: if the weights that `name` asks for are not installed, or there is no such name.
    """
    if name not in ("auto", "efficientnet_lite0", "random"):
        raise UserError(f"features={name!r}", rule="no such features", repair="auto, efficientnet_lite0 or random")
    with torch.random.fork_rng(devices=[]):
        if name == "random" or (name == "auto" and lite0_weights() is None):
            return _random()
        return FeatureNet(lite0_stages(pretrained=True), name="efficientnet_lite0 (ImageNet-1k)")


def _random() -> FeatureNet:
    rng = sample_rng(0, "random features")
    stages, before = [], 3
    for width in RANDOM_WIDTHS:
        conv = nn.Conv2d(before, width, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, generator=rng)
        # A bias far from 0 keeps features of black regions away from 0, where their direction would be noise.
        nn.init.normal_(conv.bias, std=0.5, generator=rng)
        stages.append(nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)))
        before = width
    return FeatureNet(stages, name="random (untrained filters, seed 0)")


def _directions(features: torch.Tensor) -> torch.Tensor:
    # The epsilon stands under the root: the gradient at an all-zero feature stays finite.
    return features * (features.square().sum(1, keepdim=True) + 1e-6).rsqrt()


def perceptual_distance(a: torch.Tensor, b: torch.Tensor, features: FeatureNet) -> torch.Tensor:
    """Returns the perceptual distance of unit images a and b, both (B, C, H, W), as (B,) in [0, 4].

    At each stage: features scaled to unit length over the channels, squared difference summed over the channels and
    averaged over space; then the mean over the stages. Eq. 1 of Zhang et al. 2018 with all channel weights 1 and
    another network, so it is not LPIPS and not comparable with it.
    """
    stages = zip(features(a), features(b), strict=True)
    distances = [(_directions(x) - _directions(y)).square().sum(1).mean((1, 2)) for x, y in stages]
    return torch.stack(distances).mean(0)


def diversity(samples: torch.Tensor, features: FeatureNet) -> torch.Tensor:
    """Returns the mean `perceptual_distance` over all pairs of unit samples (S, C, H, W), a scalar.

    The mean squared distance over pairs is twice the unbiased variance, so no pair is formed.

    Raises:
        UserError: if there are fewer than two samples.
    """
    if len(samples) < 2:
        raise UserError(f"{len(samples)} sample(s)", rule="diversity compares pairs of samples",
                        repair="draw at least two")
    # A few at a time: what lies between the stages is several times as large as what they give.
    stages = zip(*(features(some) for some in samples.split(AT_A_TIME)), strict=True)
    spreads = [2 * _directions(torch.cat(x)).var(0).sum(0).mean() for x in stages]
    return torch.stack(spreads).mean()
