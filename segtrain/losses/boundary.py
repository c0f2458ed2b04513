"""Cross-entropy with a further term on the outlines of the pseudo-labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field

from segtrain.losses.consistency import consistency_ce
from segtrain.targets.target import Target
from synth.core.config import Settings

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def sobel_edges(hard: torch.Tensor, valid: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Returns (B, H, W) bool: where the Sobel gradient of a class's mask, of labels `hard` (B, H, W), is not zero.

    Pixels with an invalid one (`valid` (B, H, W) bool) among their eight neighbours are none: what lies there is not
    known, least of all an outline.
    """
    kernel = torch.tensor(SOBEL, device=hard.device)
    masks = F.one_hot(hard, n_classes).movedim(-1, 1).float().flatten(0, 1)[:, None]
    masks = F.pad(masks, (1, 1, 1, 1), mode="replicate")
    slopes = F.conv2d(masks, torch.stack([kernel, kernel.T])[:, None])
    edges = (slopes.abs() > 1e-6).any(dim=1).unflatten(0, (len(hard), n_classes)).any(dim=1)
    return edges & (F.max_pool2d((~valid)[:, None].float(), 3, stride=1, padding=1)[:, 0] == 0)


class CeBoundary(Settings):
    """Slot member `ce_boundary`: weighted cross-entropy, plus `boundary` times the mean cross-entropy on Sobel edges.

    CW-BASS (Tarubinga et al. 2025). Both are means over pixels that passed the filter. The outlines are those of the
    moved pseudo-label: after a mix they include its rim, so this loss goes with views that do not mix.
    """

    boundary: float = Field(0.5, ge=0)

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """Returns the loss (scalar) of logits (B, K, H, W)."""
        whole = consistency_ce(logits, target, norm="valid")
        edges = sobel_edges(target.hard.masked_fill(~target.valid, 0), target.valid, logits.shape[1])
        losses = F.cross_entropy(logits.float(), target.hard.masked_fill(~target.valid, 0), reduction="none")
        return whole + self.boundary * (losses * target.weight * edges).sum() / edges.sum().clamp(min=1)


BOUNDARY: dict[str, type[Settings]] = {"ce_boundary": CeBoundary}
"""Losses of this module by the name that method files use."""
