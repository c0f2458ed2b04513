"""A finished image, noised a little and denoised as one: what is left of a seam goes (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from synth.core.rng import randn_each, sample_rng
from synth.diffusion.samplers import Denoise, Known, karras_sigmas, plain_walk, sample_dpmpp_2m

N_REDRAW = 4
"""Evaluations it takes, whatever the level."""


def redraw(denoise: Denoise, latents: torch.Tensor, *, sigma: float, seeds: Sequence[int], source: torch.Tensor,
           held: torch.Tensor) -> torch.Tensor:
    """Returns `latents` (B, c, h, w) noised to the level `sigma` and denoised; row i depends on `seeds[i]` alone.

    Args:
        held: (B, 1, h, w) bool, where latents stay those of `source` (B, c, h, w), at every level.
    """
    noise = randn_each(latents.shape[1:], [sample_rng(s, "redraw") for s in seeds], latents.device)
    known = Known(source, held, [sample_rng(s, "redraw known") for s in seeds])
    sigmas = karras_sigmas(N_REDRAW, sigma_min=sigma / 8, sigma_max=sigma)
    return sample_dpmpp_2m(denoise, latents + sigma * noise, sigmas, walk=plain_walk(N_REDRAW), rngs=(), known=known)
