"""The loss of labels for pseudo-labels, each part of a mixed image by itself."""

from __future__ import annotations

import torch

from segtrain.losses.consistency import _pseudo_labels
from segtrain.losses.supervised import masked_ce, soft_dice_loss
from segtrain.targets.target import Target
from synth.core.checks import IGNORE
from synth.core.config import Settings


def dice_ce_of_part(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns half cross-entropy, half soft Dice (scalar) over labels (B, H, W) != 255, both weighted.

    Dice is a ratio, in which a weight that all pixels share cancels; it is multiplied by the pixels' mean weight. It is
    the mean over the classes that the labels show.
    """
    counted = labels != IGNORE
    mean = (weight * counted).sum() / counted.sum().clamp(min=1)
    dice = soft_dice_loss(logits, labels, weight=weight, present_only=True)
    return 0.5 * (masked_ce(logits, labels, weight=weight) + mean * dice)


def pseudo_dice_ce(logits: torch.Tensor, target: Target) -> torch.Tensor:
    """Returns `dice_ce_of_part` (scalar) of logits (B, K, H, W) and hard targets; of a mix, the sum over both parts.

    BCP (Bai et al. 2023, section 3): each part is normalised by its own size, so that neither box nor frame counts more
    than its weight says.

    Raises:
        UserError: if the target has no hard labels.
    """
    labels = _pseudo_labels(target, "dice_ce")
    if target.pasted is None:
        return dice_ce_of_part(logits, labels, target.weight)
    parts = (labels.masked_fill(~part, IGNORE) for part in (target.pasted, ~target.pasted))
    return sum(dice_ce_of_part(logits, part, target.weight) for part in parts)


class PseudoDiceCe(Settings):
    """Slot member `dice_ce`: half cross-entropy, half soft Dice against hard pseudo-labels."""

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """Returns `pseudo_dice_ce` (scalar) of logits (B, K, H, W)."""
        return pseudo_dice_ce(logits, target)


PARTS: dict[str, type[Settings]] = {"dice_ce": PseudoDiceCe}
"""Losses of this module by the name that method files use."""
