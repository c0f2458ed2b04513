"""Consistency losses, (logits, Target) -> scalar. Pixels that a filter dropped get a gradient of exactly zero."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from segtrain.losses.supervised import soft_dice_loss
from segtrain.targets.target import Target
from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings


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
    nearly all background, which passes any threshold first, and teaches the student to find nothing. Unlike there, a
    class that no pseudo-label shows does not count: to push it down would be to learn that it is nowhere from a teacher
    that has not found it yet.

    Attributes:
        norm: Dice is a ratio, so a hundred confident pixels pull as hard as all of them would. "all" weighs it by the
            share of pixels that passed, as the mean over all pixels does to cross-entropy; "valid" leaves it.
    """

    norm: Literal["all", "valid"] = "valid"

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """Returns `soft_dice_loss` (scalar) of logits (B, K, H, W)."""
        loss = soft_dice_loss(logits, _pseudo_labels(target, "dice"), weight=target.weight, present_only=True)
        return loss * target.valid.float().mean() if self.norm == "all" else loss


class Mse(Settings):
    """Slot member `mse`: mean squared difference of probabilities over the classes and the valid pixels, weighted."""

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """Returns the loss (scalar) of logits (B, K, H, W)."""
        counted = target.weight * target.valid
        squared = (logits.float().softmax(dim=1) - target.prob).square().mean(dim=1)
        return (counted * squared).sum() / target.valid.sum().clamp(min=1)


CONSISTENCY: dict[str, type[Settings]] = {"ce": Ce, "dice": Dice, "mse": Mse}
"""Losses of this module by the name that method files use."""
