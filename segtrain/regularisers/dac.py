"""Each image's own balance between its labels and agreement of its augmentations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field

from segtrain.ranks import gathered
from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


def image_ce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy of each image (B,), of logits (B, K, H, W) over labels (B, H, W) != 255."""
    losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none").sum(dim=(1, 2))
    return losses / (labels != IGNORE).sum(dim=(1, 2)).clamp(min=1)


def image_dac(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Returns twice the mean squared difference (B,) of features (B, D, h, w) of two augmentations of each image."""
    return 2 * (one.float() - two.float()).square().mean(dim=(1, 2, 3))


def reweigh(odds: torch.Tensor, ce: torch.Tensor, dac: torch.Tensor, *, eta: float) -> torch.Tensor:
    """Returns log(w_ce / w_dac) (B,) after one step of exponentiated gradient ascent on w_ce CE + w_dac DAC.

    w_ce <- w_ce e^(eta CE) / Z, w_dac <- w_dac e^(eta DAC) / Z (Dong et al. 2023, algorithm 1): in the logarithm of
    their ratio `odds` (B,) that is a sum, and the weights stay on the simplex by construction.
    """
    return odds + eta * (ce - dac)


class Dac(Settings):
    """Slot member `dac`: w_ce CE + w_dac DAC with weights of each image, which are remembered by its row.

    Cross-entropy is of the supervised images as they are, features are the encoder's last, of those and of view
    `view`, which shows the same images changed in intensity.

    Attributes:
        eta: step of the weights.
    """

    eta: float = Field(1.0, ge=0)
    view: int = Field(0, ge=0)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the mean over images (scalar); the weights move first, as in the paper."""
        given, shown = scene.supervised, scene.view(self.view)
        if shown.images.shape != given.images.shape:
            raise UserError(f"view {self.view}", rule="it does not show the supervised images",
                            repair="give it of: supervised and perturbations that stay in place")
        own = scene.seen_by(shown.branch)
        ce, dac = image_ce(own.logits, given.labels), image_dac(own.coarse, shown.seen.coarse)
        w_ce = self._weights(scene, ce.detach(), dac.detach())
        scene.stats["w_ce"] = w_ce.mean()
        return ((w_ce * ce + (1 - w_ce) * dac) * torch.where(given.synthetic, scene.w_syn, 1.0)).mean()

    def _weights(self, scene: Scene, ce: torch.Tensor, dac: torch.Tensor) -> torch.Tensor:
        rows, moves = gathered(scene.supervised.rows), gathered(reweigh(torch.zeros_like(ce), ce, dac, eta=self.eta))
        memory = scene.memory.get("odds", ce.new_zeros(0))
        odds = F.pad(memory, (0, max(int(rows.max()) + 1 - len(memory), 0)))
        scene.memory["odds"] = odds.index_add(0, rows, moves)
        return scene.memory["odds"][scene.supervised.rows].sigmoid()


DAC: dict[str, type[Settings]] = {"dac": Dac}
"""Regularisers of this module by the name that method files use."""
