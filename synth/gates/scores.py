"""Pure scores. Each takes tensors and returns one number per pair, (B,)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from synth.core.checks import IGNORE
from synth.core.space import top_class


def faithfulness(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the judge's Dice with the label mask, mean over the classes present, (B,) in [0, 1].

    Args:
        probabilities: of the judge, (B, K, H, W). labels: (B, H, W), 255 = ignored.
    """
    predicted, valid = top_class(probabilities), labels != IGNORE
    scores, present = [], []
    for k in range(1, probabilities.shape[1]):
        a, b = (predicted == k) & valid, (labels == k) & valid
        overlap, total = (a & b).sum((1, 2)), a.sum((1, 2)) + b.sum((1, 2))
        scores.append(2 * overlap / total.clamp(min=1))
        present.append(b.any(2).any(1))
    score, there = torch.stack(scores, 1), torch.stack(present, 1).float()
    return (score * there).sum(1) / there.sum(1).clamp(min=1)


def false_foreground(probabilities: torch.Tensor, outside: torch.Tensor, *, confidence: float) -> torch.Tensor:
    """Returns where the judge sees foreground with more than `confidence` outside the kept region, (B, H, W) bool.

    Args:
        probabilities: (B, K, H, W). outside: (B, H, W) bool, True where the surrounding was painted.
    """
    return (1 - probabilities[:, 0] > confidence) & outside


def plausibility(percentile: torch.Tensor) -> torch.Tensor:
    """Returns the share of real label maps at least as surprising as each pair's, (B,) in [0, 1]; 0 = none is.

    Args:
        percentile: (B,), the share of real label maps that are less surprising to a shape model.
    """
    return 1 - percentile


def thumbnails(images: torch.Tensor, size: int) -> torch.Tensor:
    """Returns grey thumbnails (B, size * size) of unit images (B, C, H, W)."""
    return F.adaptive_avg_pool2d(images.mean(1, keepdim=True), size).flatten(1)


def highest_correlation(thumbs: torch.Tensor, region: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Returns the highest correlation of each image with any of the bank, within its own region, (B,) in [-1, 1].

    Args:
        thumbs: (B, D). region: (B, D) in {0, 1}, the painted part. bank: (N, D), training images.
    """
    # In double: sums of squares of a dark, flat region cancel to nothing in single precision.
    thumbs, region, bank = thumbs.double(), region.double(), bank.double()
    n = region.sum(1, keepdim=True).clamp(min=1)
    mean = (thumbs * region).sum(1, keepdim=True) / n
    centred = (thumbs - mean) * region
    norm = centred.square().sum(1, keepdim=True)
    bank_mean = region @ bank.T / n  # (B, N)
    bank_norm = (region @ bank.square().T - n * bank_mean.square()).clamp(min=1e-6)
    correlation = (centred @ bank.T) / (norm.clamp(min=1e-6) * bank_norm).sqrt()
    # A region of a few cells correlates with something by chance; there is nothing to remember in it.
    return torch.where(n[:, 0] >= 0.05 * thumbs.shape[1], correlation.max(1).values, correlation.new_tensor(-1.0))


def spectrum_score(features: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor, *, n_bands: int) -> torch.Tensor:
    """Returns how far the strangest feature of each spectrum lies from those of real images, in deviations, (B,) >= 0.

    Args:
        features: (B, F), of `Fingerprint.features`: bands first, in which both too much and too little counts, then
            peaks, of which only too much does. mean, sd: of real images, (F,). n_bands: how many are bands.
    """
    z = (features - mean) / sd
    return torch.cat([z[:, :n_bands].abs(), z[:, n_bands:].clamp(min=0)], dim=1).amax(1)
