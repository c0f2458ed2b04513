"""TraCoCo's confident regional cross-entropy: what the target is sure of, and what it is sure is not there."""

from __future__ import annotations

import torch
from pydantic import Field

from segtrain.targets.target import Target
from synth.core.checks import UserError
from synth.core.config import Settings


def crc(logits: torch.Tensor, target: Target, *, positive: float, negative: float, weight: float) -> torch.Tensor:
    """Returns the positive + `weight` * negative loss (scalar) of logits (B, K, H, W), mean over the valid pixels.

    With q the target's probabilities, c their maximum at class y, and p the student's: a pixel's positive part is
    c [c >= positive] (-log p_y), its negative part sum_k [q_k < negative] (-log(1 - p_k)) (TraCoCo, Liu et al.
    2022). A pixel that calls no class absent has no negative part.

    Raises:
        UserError: if `positive` is at most 1/K, which every pixel passes.
    """
    n_classes = logits.shape[1]
    if positive <= 1 / n_classes:
        raise UserError(f"crc positive {positive}", rule=f"with {n_classes} classes the largest probability is never "
                        f"below {1 / n_classes:.3g}, so nothing would be filtered", repair="raise it, e.g. to 0.65")
    logits = logits.float()
    log = logits.log_softmax(dim=1)
    confidence, label = target.prob.max(dim=1)
    sure = confidence * (confidence >= positive) * -log.gather(1, label[:, None])[:, 0]
    absent = (target.prob < negative) * -_log_of_not(logits)
    counted = target.weight * target.valid
    return (counted * (sure + weight * absent.sum(dim=1))).sum() / target.valid.sum().clamp(min=1)


def _log_of_not(logits: torch.Tensor) -> torch.Tensor:
    """Returns log(1 - p_k) (B, K, H, W) = logsumexp of the other classes - logsumexp of all, exact for p near 1."""
    others = torch.stack([
        torch.cat([logits[:, :k], logits[:, k + 1:]], dim=1).logsumexp(dim=1) for k in range(logits.shape[1])], dim=1)
    return others - logits.logsumexp(dim=1, keepdim=True)


class Crc(Settings):
    """Slot member `crc`: positive and negative evidence of soft targets.

    Attributes:
        positive: least confidence that teaches what is there. negative: below it a class is taken to be absent.
        weight: of the negative part.
    """

    positive: float = Field(0.65, gt=0, lt=1)
    negative: float = Field(0.1, ge=0, lt=0.5)
    weight: float = Field(1.0, ge=0)

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """Returns `crc` (scalar) of logits (B, K, H, W)."""
        return crc(logits, target, positive=self.positive, negative=self.negative, weight=self.weight)


CRC: dict[str, type[Settings]] = {"crc": Crc}
"""Losses of this module by the name that method files use."""
