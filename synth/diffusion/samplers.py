"""Samplers as plain functions: from noise to clean latents, with an optional known region."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from synth.core.rng import randn_each

Denoise = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""(latents (B, c, h, w), level index) -> (clean latents, noise), both (B, c, h, w)."""


@dataclass(frozen=True)
class Known:
    """What must stay: clean latents (B, c, h, w), where (B, 1, h, w) bool, and the generators of its own noise.

    Its noise has generators of its own, so that an empty keep mask draws exactly what the plain sampler draws.
    """

    latents: torch.Tensor
    keep: torch.Tensor
    rngs: Sequence[torch.Generator]


def resampling_walk(n_steps: int, *, jump_length: int, jump_repeats: int) -> list[tuple[int, int]]:
    """Returns the moves (from level, to level) of RePaint's schedule, n_steps = pure noise, 0 = clean.

    Every `jump_length` levels the walk goes back up by that many, `jump_repeats - 1` times (Lugmayr et al. 2022,
    algorithm 1). A move down is one network evaluation; a move up is one draw of noise.
    """
    left = {level: jump_repeats - 1 for level in range(0, n_steps - jump_length, jump_length)}
    moves, level = [], n_steps
    while level > 0:
        moves.append((level, level - 1))
        level -= 1
        if left.get(level, 0) > 0:
            left[level] -= 1
            moves.append((level, level + jump_length))
            level += jump_length
    return moves


def n_evaluations(n_steps: int, *, jump_length: int, jump_repeats: int) -> int:
    """Returns the network evaluations of `resampling_walk`."""
    return sum(a > b for a, b in resampling_walk(n_steps, jump_length=jump_length, jump_repeats=jump_repeats))


def _renoise(latents: torch.Tensor, ratio: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return ratio.sqrt() * latents + (1 - ratio).clamp(min=0).sqrt() * noise


def sample_ddim(denoise: Denoise, latents: torch.Tensor, alphas: torch.Tensor, *, walk: Sequence[tuple[int, int]],
                rngs: Sequence[torch.Generator], eta: float, known: Known | None = None) -> torch.Tensor:
    """Returns clean latents (B, c, h, w) from `latents` at the first level of `walk`.

    Both halves are always at one noise level: after each move to level t the known region is its clean latents
    noised to that same t with fresh noise; at level 0 it is clean.

    Args:
        alphas: cumulative alpha of levels 0..n, (n + 1,), alphas[0] = 1.
        eta: 0 = deterministic, 1 = ancestral (Song et al. 2021, eq. 16).
    """
    shape = latents.shape[1:]
    for source, target in walk:
        a, b = alphas[source], alphas[target]
        if target > source:
            latents = _renoise(latents, b / a, randn_each(shape, rngs, latents.device))
            continue
        clean, noise = denoise(latents, source)
        sigma = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).clamp(min=0).sqrt()
        latents = b.sqrt() * clean + (1 - b - sigma**2).clamp(min=0).sqrt() * noise
        if eta > 0 and target > 0:
            latents = latents + sigma * randn_each(shape, rngs, latents.device)
        if known is not None:
            fixed = known.latents
            if target > 0:
                fixed = _renoise(fixed, b, randn_each(shape, known.rngs, latents.device))
            latents = torch.where(known.keep, fixed, latents)
    return latents
