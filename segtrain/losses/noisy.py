"""Dice losses for labels that may be wrong: with weights of pixels, and with errors that count by a power."""

from __future__ import annotations

import torch
from pydantic import Field

from segtrain.losses.supervised import EPS
from segtrain.targets.target import Target
from synth.core.config import Settings
from synth.core.space import labels_to_onehot

DIMS = (0, 2, 3)


def _said(logits: torch.Tensor, target: Target) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Probabilities and labels (B, K, H, W), and weights (B, 1, H, W), 0 where a pixel does not count.
    labels = target.prob if target.hard is None else labels_to_onehot(target.hard, logits.shape[1])
    return logits.float().softmax(dim=1), labels, (target.weight * target.valid)[:, None]


def _mean(losses: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    # Over the classes (K,) that the labels show, as in `dice`; 0 without any.
    shown = sizes > 0
    return (losses * shown).sum() / shown.sum().clamp(min=1)


def noise_weighted_dice(logits: torch.Tensor, target: Target) -> torch.Tensor:
    """Returns 1 - (2 sum w p y + e) / (sum w (p + y) + e) (scalar), the mean over the classes that the labels show.

    Logits p are (B, K, H, W), labels y hard or probabilities, weights w (B, H, W); sums run over the batch, so that an
    image's weight counts. After Wang et al. 2020 (arXiv 2012.14584), of which only the abstract is known here.
    """
    prob, labels, weight = _said(logits, target)
    overlap, sizes = (weight * prob * labels).sum(DIMS), (weight * (prob + labels)).sum(DIMS)
    return _mean(1 - (2 * overlap + EPS) / (sizes + EPS), (weight * labels).sum(DIMS))


def noise_robust_dice(logits: torch.Tensor, target: Target, *, gamma: float) -> torch.Tensor:
    """Returns sum w |p - y|^gamma / (sum w p + sum w y + e) (scalar), the mean over the classes that the labels show.

    Wang et al. 2020 (COPLE-Net), there without weights and over all classes: gamma = 1 is near a mean absolute error,
    which wrong labels hurt least, 2 is near the usual Dice.
    """
    prob, labels, weight = _said(logits, target)
    errors = (weight * (prob - labels).abs().pow(gamma)).sum(DIMS)
    return _mean(errors / ((weight * (prob + labels)).sum(DIMS) + EPS), (weight * labels).sum(DIMS))


class NoiseWeightedDice(Settings):
    """Slot member `noise_weighted_dice`."""

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """Returns `noise_weighted_dice` (scalar) of logits (B, K, H, W)."""
        return noise_weighted_dice(logits, target)


class NoiseRobustDice(Settings):
    """Slot member `noise_robust_dice`."""

    gamma: float = Field(1.5, ge=1, le=2)

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """Returns `noise_robust_dice` (scalar) of logits (B, K, H, W)."""
        return noise_robust_dice(logits, target, gamma=self.gamma)


NOISY: dict[str, type[Settings]] = {"noise_weighted_dice": NoiseWeightedDice, "noise_robust_dice": NoiseRobustDice}
"""Losses of this module by the name that method files use."""
