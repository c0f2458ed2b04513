"""Changes of an encoder's features, drawn per sample from its own generator and then applied to all levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segtrain.models.segnet import Features

Rngs = Sequence[torch.Generator]


def draw_uniform(features: Features, rngs: Rngs, *, channels: bool = False) -> Features:
    """Returns numbers in [0, 1) for each level (B, c, h, w), or one per channel (B, c, 1, 1).

    Row i depends on `rngs[i]` alone.
    """
    shapes = [(f.shape[1], 1, 1) if channels else f.shape[1:] for f in features]
    rows = [[torch.rand(shape, generator=rng) for shape in shapes] for rng in rngs]
    return [torch.stack(level).to(f.device) for level, f in zip(zip(*rows, strict=True), features, strict=True)]


def drop(features: Features, drawn: Features, *, p: float) -> Features:
    """Returns features (B, c, h, w) that are 0 where `drawn` is below `p`, the rest divided by 1 - p (dropout)."""
    return [f * ((u >= p) / (1 - p)) for f, u in zip(features, drawn, strict=True)]


def add_uniform_noise(features: Features, drawn: Features, *, limit: float) -> Features:
    """Returns z + z * n of features z (B, c, h, w), n uniform in [-limit, limit) (CCT, Ouali et al. 2020, F-Noise)."""
    return [f * (1 + limit * (2 * u - 1)) for f, u in zip(features, drawn, strict=True)]


def drop_attended(features: Features, shares: torch.Tensor) -> Features:
    """Returns features (B, c, h, w) without the places that are most active (CCT, Ouali et al. 2020, F-Drop).

    A place goes where its mean activity exceeds `shares` (B,) of the image's largest. Activity is the mean absolute
    value over channels, which for rectified features is the paper's mean.
    """
    found = []
    for f in features:
        activity = f.detach().abs().mean(dim=1, keepdim=True)
        bound = activity.amax(dim=(2, 3), keepdim=True) * shares.to(f)[:, None, None, None]
        found.append(f * (activity <= bound))
    return found


def complementary_gates(features: Features, rngs: Rngs, *, p: float) -> Features:
    """Returns factors 0 or 2 for each level's channels (B, c, 1, 1), all 1 for the images, 1 - p of them, left whole.

    A view that takes m and one that takes 2 - m see each channel once (UniMatch V2, Yang et al. 2025).
    """
    hit = torch.stack([torch.rand((), generator=rng) for rng in rngs]) < p
    drawn = draw_uniform(features, rngs, channels=True)
    return [torch.where(hit.to(u.device)[:, None, None, None], 2.0 * (u < 0.5), 1.0) for u in drawn]
