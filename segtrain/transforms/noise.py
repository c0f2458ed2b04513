"""Noise on images: drawn per sample, bounded, so that no pixel leaves its tissue's range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from synth.core.config import Settings
from synth.core.rng import randn_each


class NoiseSettings(Settings):
    """Noise of standard deviation `sigma`, cut off at `limit`, both in units of the unit space."""

    sigma: float = Field(0.1, ge=0)
    limit: float = Field(0.2, ge=0)


def bounded_noise(shape: Sequence[int], rngs: Sequence[torch.Generator], settings: NoiseSettings,
                  device: torch.device) -> torch.Tensor:
    """Returns noise (B, *shape), clamp(sigma N(0, 1), -limit, limit); row i depends on `rngs[i]` alone."""
    return (settings.sigma * randn_each(shape, rngs, device)).clamp(-settings.limit, settings.limit)
