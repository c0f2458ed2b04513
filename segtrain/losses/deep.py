"""Deep supervision: the labels teach the decoder's further levels too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from segtrain.models import Seen
from segtrain.targets.target import Target

if TYPE_CHECKING:
    from segtrain.scene import Supervised

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def level_weights(n: int) -> list[float]:
    """Returns the weights of n levels, fine to coarse: each half of the one before, and 1 together (nnU-Net's)."""
    halves = [0.5**i for i in range(n)]
    return [half / sum(halves) for half in halves]


def supervise_levels(loss: Loss, levels: Sequence[torch.Tensor], labels: torch.Tensor,
                     weight: torch.Tensor | None) -> torch.Tensor:
    """Returns the weighted sum (scalar) of `loss` over levels, logits (B, K, h, w) each, fine to coarse.

    Labels (B, H, W), or probabilities (B, K, H, W), and pixel weights (B, H, W) go to each level's size, nearest
    neighbour, so that ignored pixels stay ignored. Of one level alone it is `loss` itself.
    """
    if len(levels) == 1:
        return loss(levels[0], labels, weight)
    total = torch.zeros((), device=labels.device)
    for share, logits in zip(level_weights(len(levels)), levels, strict=True):
        size = tuple(logits.shape[-2:])
        total = total + share * loss(logits, _at(labels, size), None if weight is None else _at(weight, size))
    return total


def loss_by_kind(loss: Loss, seen: Seen, given: Supervised) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the losses (scalars) of the labelled and of the synthetic images, 0 where there are none.

    Means over each kind, so that a weight between them weighs the one against the other whatever their shares.
    """
    labels = given.labels if given.prob is None else given.prob
    real, made = (loss_of_rows(loss, seen, labels, given.weight, kind) for kind in (~given.synthetic, given.synthetic))
    return real, made


def between_kinds(real: torch.Tensor, made: torch.Tensor, synthetic: torch.Tensor, *, w_syn: float) -> torch.Tensor:
    """Returns the mean (scalar) of the labelled images' loss and `w_syn` of the synthetic ones', of those there are.

    A mean, and not a sum: what unlabelled images add weighs as much beside it with synthetic pairs as without them.

    Args:
        synthetic: which images are, (B,) bool.
    """
    weights = float((~synthetic).any()), w_syn * float(synthetic.any())
    return (weights[0] * real + weights[1] * made) / max(sum(weights), 1e-12)


def loss_of_rows(loss: Loss, seen: Seen, labels: torch.Tensor, weight: torch.Tensor | None, rows: torch.Tensor
                 ) -> torch.Tensor:
    """Returns the loss (scalar) of what was seen of some `rows` (B,) bool on all levels; 0 if there are none.

    Labels are (B, H, W), or probabilities (B, K, H, W); pixel weights (B, H, W).
    """
    if not rows.any():
        return seen.logits.new_zeros(())
    levels = [seen.logits, *seen.deep]
    if not rows.all():
        levels, labels = [level[rows] for level in levels], labels[rows]
        weight = None if weight is None else weight[rows]
    return supervise_levels(loss, levels, labels, weight)


def loss_of_levels(loss: Callable[[torch.Tensor, Target], torch.Tensor], seen: Seen, target: Target) -> torch.Tensor:
    """Returns the loss (scalar) of what was seen of a target's images on all levels, weighted as labels are.

    The target (B, K, H, W) goes to each level's size, nearest neighbour. Without further levels it is `loss` itself.
    """
    levels = [seen.logits, *seen.deep]
    if len(levels) == 1:
        return loss(seen.logits, target)
    losses = [loss(logits, _target_at(target, tuple(logits.shape[-2:]))) for logits in levels]
    return sum(share * one for share, one in zip(level_weights(len(levels)), losses, strict=True))


def _target_at(target: Target, size: tuple[int, int]) -> Target:
    moved = {name: None if values is None else _at(values, size) for name, values in (
        ("prob", target.prob), ("hard", target.hard), ("weight", target.weight), ("valid", target.valid),
        ("pasted", target.pasted))}
    return replace(target, **moved)


def _at(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if values.shape[-2:] == size:
        return values
    channels = values if values.ndim == 4 else values[:, None]
    resized = F.interpolate(channels.float(), size, mode="nearest-exact").to(values.dtype)
    return resized if values.ndim == 4 else resized[:, 0]
