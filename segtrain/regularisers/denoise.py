"""Trains the auto-encoder of label masks, on the masks of the labelled and synthetic images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field

from segtrain.heads.dae import apply_damage, draw_damage
from segtrain.losses.supervised import soft_dice_loss
from synth.core.checks import IGNORE
from synth.core.config import Settings
from synth.core.space import labels_to_onehot

if TYPE_CHECKING:
    from segtrain.scene import Scene


def denoising_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns half squared error, half soft Dice (scalar) of logits (B, K, H, W) and whole labels (B, H, W); 255 is
    passed over. Adiga et al. 2024 train their auto-encoder so."""
    counted = (labels != IGNORE)[:, None]
    squared = (logits.float().softmax(dim=1) - labels_to_onehot(labels, logits.shape[1])).square() * counted
    mse = squared.sum() / (counted.sum() * logits.shape[1]).clamp(min=1)
    return 0.5 * (mse + soft_dice_loss(logits, labels))


class Denoise(Settings):
    """Slot member `denoise`: the head shall mend masks of which pixels were changed and patches swapped.

    Attributes:
        head: its name. p: share of pixels changed. swaps: of patches, in each mask. patch: their side, share of the
            image's.
    """

    head: str = "dae"
    p: float = Field(0.2, ge=0, le=1)
    swaps: int = Field(4, ge=0)
    patch: float = Field(0.125, gt=0, le=0.5)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns `denoising_loss` (scalar) of the supervised masks; it reaches the head alone."""
        labels = scene.supervised.labels
        height, width = labels.shape[-2:]
        damage = draw_damage(scene.supervised_rngs("damage"), (height, width), n_classes=scene.n_classes, p=self.p,
                             n_swaps=self.swaps)
        damaged = apply_damage(labels, damage, side=max(round(self.patch * min(height, width)), 1))
        return denoising_loss(scene.head(self.head)(labels_to_onehot(damaged, scene.n_classes)), labels)


DENOISE: dict[str, type[Settings]] = {"denoise": Denoise}
"""Regularisers of this module by the name that method files use."""
