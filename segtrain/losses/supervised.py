"""Losses of labels. Pixels that do not count (ignored) get a gradient of exactly zero."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from synth.core.checks import IGNORE
from synth.core.config import Settings
from synth.core.space import labels_to_onehot

EPS = 1e-5


def masked_ce(logits: torch.Tensor, labels: torch.Tensor, *, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the mean cross-entropy (scalar) of logits (B, K, H, W) over labels (B, H, W) != 255; 0 without any.

    Labels may be probabilities (B, K, H, W), zero in every class = ignored. `weight` (B, H, W) weighs pixels; the mean
    is still over their number.
    """
    if labels.is_floating_point():
        return _soft_ce(logits, labels, weight)
    counted = (labels != IGNORE).sum().clamp(min=1)
    if weight is None:
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum") / counted
    return (weight * F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")).sum() / counted


def _soft_ce(logits: torch.Tensor, prob: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    losses = -(prob * logits.float().log_softmax(dim=1)).sum(dim=1)
    return (losses if weight is None else weight * losses).sum() / (prob.sum(dim=1) > 0).sum().clamp(min=1)


def soft_dice_loss(logits: torch.Tensor, labels: torch.Tensor, *, weight: torch.Tensor | None = None,
                   present_only: bool = False) -> torch.Tensor:
    """Returns 1 - mean_k (2 sum w p_k y_k + e) / (sum w p_k^2 + sum w y_k^2 + e), a scalar.

    Logits are (B, K, H, W), labels (B, H, W) with 255 = ignore, or probabilities (B, K, H, W), zero = ignore; weight is
    (B, H, W), 1 where not given. Sums run over the batch's counted pixels; with none, the loss is 0. Squared
    denominators as in V-Net (Milletari et al. 2016, eq. of section 3). With `present_only` the mean is over the classes
    that the labels show.
    """
    onehot = labels if labels.is_floating_point() else labels_to_onehot(labels, logits.shape[1])
    counted = (onehot.sum(dim=1, keepdim=True) > 0).float()
    if weight is not None:
        counted = counted * weight[:, None]
    prob = logits.float().softmax(dim=1)
    dims = (0, 2, 3)
    overlap = (counted * prob * onehot).sum(dims)
    sizes = (counted * (prob.square() + onehot.square())).sum(dims)
    losses = 1 - (2 * overlap + EPS) / (sizes + EPS)
    if not present_only:
        return losses.mean()
    present = (counted * onehot).sum(dims) > 0
    return (losses * present).sum() / present.sum().clamp(min=1)


def supervised(logits: torch.Tensor, labels: torch.Tensor, *, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Returns half cross-entropy, half soft Dice (scalar) of logits (B, K, H, W) and labels (B, H, W), 255 = ignore."""
    return 0.5 * (masked_ce(logits, labels, weight=weight) + soft_dice_loss(logits, labels, weight=weight))


class DiceCe(Settings):
    """Slot member `dice_ce`: half cross-entropy, half soft Dice."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Returns `supervised` (scalar) of logits (B, K, H, W), labels and pixel weights (B, H, W)."""
        return supervised(logits, labels, weight=weight)


SUPERVISED: dict[str, type[Settings]] = {"dice_ce": DiceCe}
"""Losses of labels, (logits, labels, weight) -> scalar, by the name that method files use."""
