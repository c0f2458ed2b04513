"""Operators on targets, Target -> Target, pure and chainable: harden, sharpen, and drop pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from segtrain.targets.target import Target
from synth.core.checks import UserError
from synth.core.config import Settings
from synth.core.space import top_class

if TYPE_CHECKING:
    from segtrain.scene import Scene


def argmax(target: Target) -> Target:
    """Returns `target` with the most probable class as its hard label."""
    return replace(target, hard=top_class(target.prob))


def confidence(target: Target, *, tau: float) -> Target:
    """Returns `target` with only those pixels valid whose largest probability is at least `tau`; logs the share kept.

    Raises:
        UserError: if `tau` is at most 1/K, which every pixel passes.
    """
    n_classes = target.prob.shape[1]
    if tau <= 1 / n_classes:
        raise UserError(f"confidence tau {tau}", rule=f"with {n_classes} classes the largest probability is never "
                        f"below {1 / n_classes:.3g}, so nothing would be filtered", repair="raise tau, e.g. to 0.95")
    return target.narrowed(target.prob.amax(dim=1) >= tau)


def sharpen(target: Target, *, temperature: float) -> Target:
    """Returns `target` with probabilities p_k^(1/T) / sum_j p_j^(1/T) (MC-Net, Wu et al. 2021, eq. 1)."""
    log = target.prob.clamp_min(torch.finfo(target.prob.dtype).tiny).log()
    return replace(target, prob=(log / temperature).softmax(dim=1))


class Argmax(Settings):
    """Slot member `argmax`."""

    def __call__(self, target: Target, scene: Scene) -> Target:
        """Returns `argmax(target)`."""
        return argmax(target)


class Confidence(Settings):
    """Slot member `confidence`: FixMatch's filter."""

    tau: float = Field(0.95, gt=0, lt=1)

    def __call__(self, target: Target, scene: Scene) -> Target:
        """Returns `confidence(target, tau=self.tau)`."""
        return confidence(target, tau=self.tau)


class Sharpen(Settings):
    """Slot member `sharpen`."""

    temperature: float = Field(0.1, gt=0, le=1)

    def __call__(self, target: Target, scene: Scene) -> Target:
        """Returns `sharpen(target, temperature=self.temperature)`."""
        return sharpen(target, temperature=self.temperature)


FILTERS: dict[str, type[Settings]] = {"argmax": Argmax, "confidence": Confidence, "sharpen": Sharpen}
"""Operators of this module by the name that method files use."""
