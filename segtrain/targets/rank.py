"""Targets by rank: the better of several branches teaches; the more certain pixels teach; branches take turns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from segtrain.losses.supervised import masked_ce, soft_dice_loss
from segtrain.targets.target import Target, soft
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


def outcome(logits: torch.Tensor, labels: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """Returns alpha CE + (1 - alpha) Dice loss (scalar) of logits (B, K, H, W): C3S3's outcome, the less the better."""
    return alpha * masked_ce(logits, labels) + (1 - alpha) * soft_dice_loss(logits, labels)


def best_branch(scene: Scene, *, alpha: float) -> str:
    """Returns the branch with the least `outcome` on this step's labelled images; of equals the first.

    Synthetic pairs do not vote, unless there is nothing else.
    """
    given = scene.supervised
    rows = ~given.synthetic if (~given.synthetic).any() else torch.ones_like(given.synthetic)
    return min(scene.topology.branches, key=lambda name: float(
        outcome(scene.said_of_supervised(name).logits[rows], given.labels[rows], alpha=alpha)))


class Best(Settings):
    """Slot member `best`: the branch that does best on the labelled images labels for the others (C3S3's competition).

    Attributes:
        alpha: share of the cross-entropy in how well a branch does.
    """

    alpha: float = Field(0.8, ge=0, le=1)

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) that the best branch says; without a valid pixel for that branch itself."""
        best = best_branch(scene, alpha=self.alpha)
        target = soft(scene.said(best).logits)
        return target if branch != best else replace(target, valid=torch.zeros_like(target.valid))


def entropy_of(prob: torch.Tensor) -> torch.Tensor:
    """Returns the entropy (B, H, W), nats, of probabilities (B, K, H, W)."""
    return -torch.xlogy(prob, prob).sum(dim=1)


def reliable(target: Target, *, share: float) -> Target:
    """Returns `target` with only those valid pixels valid, a `share` of them, whose entropy is least.

    U2PL (Wang et al. 2022); the batch's pixels are ranked together.
    """
    values = entropy_of(target.prob)
    counted = values[target.valid].flatten().sort().values
    if not len(counted):
        return target
    limit = counted[min(max(round(share * len(counted)) - 1, 0), len(counted) - 1)]
    return replace(target, valid=target.valid & (values <= limit))


class EntropyQuantile(Settings):
    """Slot member `entropy_quantile`: U2PL's filter; the share of reliable pixels grows linearly over the phase.

    The share is logged as `reliable`, not as a filter's `kept`: at its end it is meant to keep everything.
    """

    start: float = Field(0.8, gt=0, le=1)
    end: float = Field(1.0, gt=0, le=1)

    def __call__(self, target: Target, scene: Scene | None) -> Target:
        """Returns `reliable(target)` for where the phase is; as it is where there is no scene."""
        if scene is None:
            return target
        found = reliable(target, share=self.start + (self.end - self.start) * scene.progress)
        return replace(found, stats={**found.stats, "reliable": found.valid.float().mean()})


class Turn(Settings):
    """Slot member `turn`: teaches at every `n`-th step alone, from step `first` on."""

    n: int = Field(2, ge=1)
    first: int = Field(0, ge=0)

    def __call__(self, target: Target, scene: Scene | None) -> Target:
        """Returns `target`, without a valid pixel at the steps of others."""
        if scene is None or scene.step % self.n == self.first % self.n:
            return target
        return replace(target, valid=torch.zeros_like(target.valid))


RANK_SOURCES: dict[str, type[Settings]] = {"best": Best}
"""Sources of this module by the name that method files use."""

RANK_FILTERS: dict[str, type[Settings]] = {"entropy_quantile": EntropyQuantile, "turn": Turn}
"""Operators of this module by the name that method files use."""
