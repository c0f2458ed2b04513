"""A filter that asks each class for the same share of its pixels, so that a rare one is never shut out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from segtrain.ranks import summed
from segtrain.targets.target import Target
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene

N_BINS = 1024
"""Even in ln(1 - c), down to 1 - c = 2^-20: each is 1.4 % of what is missing to certainty."""


def bins_of(confidence: torch.Tensor) -> torch.Tensor:
    """Returns the bin, 0 to N_BINS - 1 and growing with it, of confidences in [0, 1] of any shape."""
    missing = (1 - confidence.double()).clamp_min(2.0**-20)
    return (-missing.log2() * (N_BINS / 20)).long().clamp(0, N_BINS - 1)


def count_by_class(target: Target) -> torch.Tensor:
    """Returns how many valid pixels (K, N_BINS), float64, of each most probable class lie in each bin of confidence."""
    sure, hard = target.prob.max(dim=1)
    n_classes = target.prob.shape[1]
    at = (hard * N_BINS + bins_of(sure))[target.valid]
    return torch.bincount(at, minlength=n_classes * N_BINS).reshape(n_classes, N_BINS).double()


def least_bins(counts: torch.Tensor, *, share: float) -> torch.Tensor:
    """Returns the lowest bin (K,) that passes for each class, if the surest `share` of its `counts` (K, N_BINS) shall.

    The bin in which the share is reached passes whole. Of a class without counts none does (N_BINS).
    """
    above = counts.flip(1).cumsum(dim=1).flip(1) - counts
    passing = above < share * counts.sum(dim=1, keepdim=True)
    return N_BINS - passing.sum(dim=1)


class ClassQuantile(Settings):
    """Slot member `class_quantile`: of the pixels of each class, the most probable one, the surest `share`.

    A running estimate: the confidences of each class are counted in bins, a batch that shows the class counts as one
    whatever the number of its pixels (else a class that shrinks would be measured by what it was when it was large),
    and earlier ones fade. What one threshold for all classes does to a rare one, whose pixels are less sure, is not
    possible; but a class that is nowhere the most probable has no pixel to keep, and one that is mostly wrong keeps its
    share of wrong ones too.

    Attributes:
        share: of each class's pixels. decay: of the estimate, per batch that shows the class.
        tau: pixels at least this sure pass too, whatever their class; null = by their share alone.
        estimate: views that name the same share one estimate.
    """

    share: float = Field(0.5, gt=0, lt=1)
    decay: float = Field(0.9, ge=0, lt=1)
    tau: float | None = Field(None, gt=0, lt=1)
    estimate: str = ""

    def __call__(self, target: Target, scene: Scene | None) -> Target:
        """Returns `target` with only those pixels valid; logs the share kept, and of the class that keeps least."""
        if scene is None:
            return target
        counts = self._counts(target, scene)
        sure, hard = target.prob.max(dim=1)
        passed = bins_of(sure) >= least_bins(counts, share=self.share)[hard]
        found = target.narrowed(passed if self.tau is None else passed | (sure >= self.tau))
        there = target.valid.flatten()
        kept, n = (torch.bincount(hard.flatten(), weights=part.double(), minlength=scene.n_classes)
                   for part in (found.valid.flatten(), there))
        least = (kept / n)[n > 0].min() if there.any() else n.new_zeros(())
        return replace(found, stats={**found.stats, "kept_least": least.float()})

    def _counts(self, target: Target, scene: Scene) -> torch.Tensor:
        key = f"class_quantile {self.estimate}"
        before = scene.memory.get(key)
        if scene.probe and before is not None:
            return before
        now = summed(count_by_class(target))
        n = now.sum(dim=1, keepdim=True)
        now = now / n.clamp(min=1)
        if before is not None:
            now = now + torch.where(n > 0, self.decay * before, before)
        if not scene.probe:
            scene.memory[key] = now
        return now


QUANTILE: dict[str, type[Settings]] = {"class_quantile": ClassQuantile}
"""Operators of this module by the name that method files use."""
