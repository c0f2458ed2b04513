"""Target: what a student is asked to predict, pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from synth.core.checks import IGNORE
from synth.core.space import labels_to_onehot, top_class


@dataclass(frozen=True)
class Target:
    """Pseudo-labels of one batch. A pixel that a filter dropped is not `valid`; it never becomes class 0.

    Attributes:
        prob: class probabilities (B, K, H, W). hard: class indices (B, H, W) int64. At least one is set.
        weight: (B, H, W), >= 0. valid: (B, H, W) bool, the pixels that may teach.
        stats: scalars to log.
        pasted: (B, H, W) bool, the pixels that a mix brought in, for losses that weigh both parts alone; None = no mix.
    """

    prob: torch.Tensor | None
    hard: torch.Tensor | None
    weight: torch.Tensor
    valid: torch.Tensor
    stats: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pasted: torch.Tensor | None = None

    def narrowed(self, passed: torch.Tensor) -> Target:
        """Returns this target with only those pixels valid that `passed` (B, H, W) bool too; logs the share kept."""
        return replace(self, valid=self.valid & passed, stats={**self.stats, "kept": passed.float().mean()})

    def labels(self) -> torch.Tensor:
        """Returns hard labels (B, H, W), 255 where they do not count; of probabilities the most probable class."""
        hard = top_class(self.prob) if self.hard is None else self.hard
        return hard.masked_fill(~self.valid, IGNORE)


def from_prob(prob: torch.Tensor) -> Target:
    """Returns the target that says `prob` (B, K, H, W), every pixel valid with weight 1."""
    prob = prob.detach().float()
    shape = (prob.shape[0], *prob.shape[2:])
    return Target(prob, None, prob.new_ones(shape), torch.ones(shape, dtype=torch.bool, device=prob.device))


def soft(logits: torch.Tensor) -> Target:
    """Returns the target that says what `logits` (B, K, H, W) say, every pixel valid with weight 1."""
    return from_prob(logits.detach().float().softmax(dim=1))


def from_labels(labels: torch.Tensor, n_classes: int) -> Target:
    """Returns the target that says `labels` (B, H, W), valid where they are not 255."""
    valid = labels != IGNORE
    hard = labels.masked_fill(~valid, 0)
    return Target(labels_to_onehot(hard, n_classes), hard, valid.float(), valid)
