"""What the student is asked to predict on unlabelled pixels: a Target, and the pure functions that narrow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from pydantic import Field

from synth.core.checks import UserError
from synth.core.config import Settings


@dataclass(frozen=True)
class Target:
    """Pseudo-labels of one batch. A pixel that a filter dropped is not `valid`; it never becomes class 0.

    Attributes:
        prob: class probabilities (B, K, H, W). hard: class indices (B, H, W) int64. At least one is set.
        weight: (B, H, W), >= 0. valid: (B, H, W) bool, the pixels that may teach.
        stats: scalars to log.
    """

    prob: torch.Tensor | None
    hard: torch.Tensor | None
    weight: torch.Tensor
    valid: torch.Tensor
    stats: Mapping[str, torch.Tensor] = field(default_factory=dict)


def soft(logits: torch.Tensor) -> Target:
    """Returns the target that says what `logits` (B, K, H, W) say, every pixel valid with weight 1."""
    prob = logits.detach().float().softmax(dim=1)
    shape = (prob.shape[0], *prob.shape[2:])
    return Target(prob, None, prob.new_ones(shape), torch.ones(shape, dtype=torch.bool, device=prob.device))


def argmax(target: Target) -> Target:
    """Returns `target` with the most probable class as its hard label."""
    return replace(target, hard=target.prob.argmax(dim=1))


def confidence(target: Target, *, tau: float) -> Target:
    """Returns `target` with only those pixels valid whose largest probability is at least `tau`; logs the share kept.

    Raises:
        UserError: if `tau` is at most 1/K, which every pixel passes.
    """
    n_classes = target.prob.shape[1]
    if tau <= 1 / n_classes:
        raise UserError(f"confidence tau {tau}", rule=f"with {n_classes} classes the largest probability is never "
                        f"below {1 / n_classes:.3g}, so nothing would be filtered", repair="raise tau, e.g. to 0.95")
    passed = target.prob.amax(dim=1) >= tau
    stats = {**target.stats, "kept": passed.float().mean()}
    return replace(target, valid=target.valid & passed, stats=stats)


class Argmax(Settings):
    """Slot member `argmax`."""

    def __call__(self, target: Target) -> Target:
        """Returns `argmax(target)`."""
        return argmax(target)


class Confidence(Settings):
    """Slot member `confidence`: FixMatch's filter."""

    tau: float = Field(0.95, gt=0, lt=1)

    def __call__(self, target: Target) -> Target:
        """Returns `confidence(target, tau=self.tau)`."""
        return confidence(target, tau=self.tau)


TARGETS: dict[str, type[Settings]] = {"argmax": Argmax, "confidence": Confidence}
"""Operators by the name that method files use."""
