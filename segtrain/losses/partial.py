"""Losses of labels that are there for a few pixels only, or for thin objects."""

from __future__ import annotations

import torch
from pydantic import Field

from segtrain.losses.supervised import masked_ce, soft_dice_loss
from synth.core.config import Settings
from synth.core.space import labels_to_onehot

EPS = 1e-5


class PartialCe(Settings):
    """Slot member `partial_ce`: the mean cross-entropy of the pixels that have a label, and nothing else.

    What an object drawn as a scribble lacks in size would enter soft Dice as if it were the object's size.
    """

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Returns `masked_ce` (scalar) of logits (B, K, H, W), labels and pixel weights (B, H, W)."""
        return masked_ce(logits, labels, weight=weight)


class DiceAlone(Settings):
    """Slot member `dice`: soft Dice without cross-entropy, which then another term weighs."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Returns `soft_dice_loss` (scalar) of logits (B, K, H, W), labels and pixel weights (B, H, W)."""
        return soft_dice_loss(logits, labels, weight=weight)


def focal_tversky(prob: torch.Tensor, truth: torch.Tensor, counted: torch.Tensor, *, miss: float, gamma: float
                  ) -> torch.Tensor:
    """Returns the mean over foreground classes (scalar) of (1 - TI_k)^gamma (Abraham & Khan 2019, eq. 4).

    TI = (TP + e) / (TP + miss FN + (1 - miss) FP + e), sums over the batch's counted pixels. `prob` and `truth` are
    (B, K, H, W), `counted` is (B, H, W), >= 0. Nothing counted, or no foreground said and none there, gives 0.
    """
    prob, truth, counted = prob[:, 1:], truth[:, 1:], counted[:, None]
    hit, missed, false = ((counted * x).sum(dim=(0, 2, 3)) for x in (
        prob * truth, (1 - prob) * truth, prob * (1 - truth)))
    index = (hit + EPS) / (hit + miss * missed + (1 - miss) * false + EPS)
    # The slope of x^gamma at 0 is infinite for gamma < 1.
    return (1 - index).clamp_min(torch.finfo(index.dtype).eps).pow(gamma).mean()


class FocalTversky(Settings):
    """Slot member `focal_tversky`: misses weigh `miss`, false alarms 1 - miss; for vessels and other thin objects."""

    miss: float = Field(0.7, ge=0, le=1)
    gamma: float = Field(0.75, gt=0)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Returns `focal_tversky` (scalar) of logits (B, K, H, W), labels and pixel weights (B, H, W)."""
        truth = labels if labels.is_floating_point() else labels_to_onehot(labels, logits.shape[1])
        counted = (truth.sum(dim=1) > 0).float() * (1 if weight is None else weight)
        return focal_tversky(logits.float().softmax(dim=1), truth, counted, miss=self.miss, gamma=self.gamma)


PARTIAL: dict[str, type[Settings]] = {"partial_ce": PartialCe, "dice": DiceAlone, "focal_tversky": FocalTversky}
"""Losses of labels of this module by the name that method files use."""
