"""Losses as functions. Pixels that do not count (ignored, filtered) get a gradient of exactly zero."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from segtrain.targets import Target
from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.space import labels_to_onehot

EPS = 1e-5


def masked_ce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy (scalar) of logits (B, K, H, W) over labels (B, H, W) != 255; 0 without any."""
    counted = (labels != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum") / counted


def soft_dice_loss(logits: torch.Tensor, labels: torch.Tensor, *, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Returns 1 - mean_k (2 sum w p_k y_k + e) / (sum w p_k^2 + sum w y_k^2 + e), a scalar.

    Logits are (B, K, H, W), labels (B, H, W) with 255 = ignore, weight (B, H, W), 1 where not given. Sums run over the
    batch's counted pixels; with none, the loss is 0. Squared denominators as in V-Net (Milletari et al. 2016, eq. of
    section 3).
    """
    counted = (labels != IGNORE)[:, None].float()
    if weight is not None:
        counted = counted * weight[:, None]
    prob, onehot = logits.float().softmax(dim=1), labels_to_onehot(labels, logits.shape[1])
    dims = (0, 2, 3)
    overlap = (counted * prob * onehot).sum(dims)
    sizes = (counted * (prob.square() + onehot.square())).sum(dims)
    return 1 - ((2 * overlap + EPS) / (sizes + EPS)).mean()


def supervised(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns half cross-entropy, half soft Dice (scalar) of logits (B, K, H, W) and labels (B, H, W), 255 = ignore."""
    return 0.5 * (masked_ce(logits, labels) + soft_dice_loss(logits, labels))


def _pseudo_labels(target: Target, loss: str) -> torch.Tensor:
    """Returns the target's hard labels (B, H, W) with 255 where they do not count."""
    if target.hard is None:
        raise UserError(f"loss {loss}", rule="it needs hard labels", repair="add argmax to the view's target")
    return target.hard.masked_fill(~target.valid, IGNORE)


def consistency_ce(logits: torch.Tensor, target: Target, *, norm: Literal["all", "valid"]) -> torch.Tensor:
    """Returns the weighted cross-entropy (scalar) of logits (B, K, H, W) against the target's hard labels.

    `norm` is what the sum over valid pixels is divided by: "all" pixels (FixMatch: few confident pixels teach little)
    or the "valid" ones (at least 1, so that a batch without any gives 0).

    Raises:
        UserError: if the target has no hard labels.
    """
    labels = _pseudo_labels(target, "ce")
    losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    n = target.valid.numel() if norm == "all" else target.valid.sum().clamp(min=1)
    return (losses * target.weight).sum() / n


class Ce(Settings):
    """Slot member `ce`: cross-entropy against hard pseudo-labels."""

    norm: Literal["all", "valid"] = "all"

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """Returns `consistency_ce` (scalar) of logits (B, K, H, W)."""
        return consistency_ce(logits, target, norm=self.norm)


class Dice(Settings):
    """Slot member `dice`: soft Dice against hard pseudo-labels over the pixels that passed the filter.

    The form of UniMatch's medical configuration. Where an object covers a few percent of the image, cross-entropy is
    nearly all background, which passes any threshold first, and teaches the student to find nothing.
    """

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """Returns `soft_dice_loss` (scalar) of logits (B, K, H, W)."""
        return soft_dice_loss(logits, _pseudo_labels(target, "dice"), weight=target.weight)


LOSSES: dict[str, type[Settings]] = {"ce": Ce, "dice": Dice}
"""Consistency losses by the name that method files use."""
