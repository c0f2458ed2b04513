"""Distances between two clouds of masks: those that a network draws for one image, and those that raters gave it.

PULASki (Chatterjee et al. 2025) trains a probabilistic U-Net by such a distance in the place of a pixel loss, so that
the spread of the drawn masks is asked for, too. Written from the formulas of Feydy & Trouve 2018.
"""

from __future__ import annotations

import math

import torch


def pairwise(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean distance of each of a (B, N, D) to each of b (B, M, D), (B, N, M)."""
    return torch.cdist(a.float(), b.float(), compute_mode="donot_use_mm_for_euclid_dist")


def nearness(distance: torch.Tensor, blur: float) -> torch.Tensor:
    """Returns the soft minimum over the last axis: -blur log mean exp(-d / blur); the mean where `blur` is inf.

    Of distances (B, N, M) it is (B, N). The minimum itself is its limit for a blur of 0.
    """
    if math.isinf(blur):
        return distance.mean(dim=-1)
    return blur * (math.log(distance.shape[-1]) - torch.logsumexp(-distance / blur, dim=-1))


def cloud_distance(a: torch.Tensor, b: torch.Tensor, *, blur: float) -> torch.Tensor:
    """Returns how far cloud a (B, N, D) is from cloud b (B, M, D), (B,), 0 where they are the same points.

    mean_x [s_b(x) - s_a(x)] over a + mean_y [s_a(y) - s_b(y)] over b, s the soft minimum of the distances to a cloud:
    the Hausdorff divergence with the energy kernel (Feydy & Trouve 2018, section 3). A blur of inf makes it the energy
    distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, a small one the mean distance to the nearest point, both ways.
    """
    across = pairwise(a, b)
    to_b, to_a = nearness(across, blur), nearness(across.mT, blur)
    own_a, own_b = nearness(pairwise(a, a), blur), nearness(pairwise(b, b), blur)
    return (to_b - own_a).mean(dim=1) + (to_a - own_b).mean(dim=1)


def masks_as_points(masks: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Returns masks (B, N, K, H, W), onehot or probabilities, as points (B, N, D) that lie within [0, 1] of each other.

    The distance of two is the root of the mean over the `counted` pixels (B, H, W) of half their squared difference:
    two hard masks that agree nowhere are 1 apart, whatever their size.
    """
    scale = (2 * counted.flatten(1).sum(dim=1).clamp(min=1)).rsqrt()
    return (masks.float() * counted[:, None, None]).flatten(2) * scale[:, None, None]


def gaussian_kl(mean: torch.Tensor, log_std: torch.Tensor, other_mean: torch.Tensor, other_log_std: torch.Tensor
                ) -> torch.Tensor:
    """Returns KL(N(mean, std) || N(other mean, other std)), summed over the last axis: (..., L) each gives (...)."""
    ratio = (2 * (log_std - other_log_std)).exp()
    apart = (mean - other_mean).square() * (-2 * other_log_std).exp()
    return 0.5 * (ratio + apart - 1 - ratio.log()).sum(dim=-1)
