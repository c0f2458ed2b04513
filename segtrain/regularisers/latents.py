"""Trains a mapping between the latents of images and of masks, after a look at what the autoencoder makes of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field

from segtrain.models.gms import LatentEncoder, MaskPainter
from segtrain.regularisers.plausible import by_kind
from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.space import top_class

if TYPE_CHECKING:
    from segtrain.scene import Scene


@torch.no_grad()
def codec_dice(encoder: LatentEncoder, painter: MaskPainter, labels: torch.Tensor) -> torch.Tensor:
    """Returns the Dice (scalar) of labels (B, H, W) with what the autoencoder gives back of them as colours.

    Mean over the foreground classes that the batch shows, 1 without any: no mapping can do better than that.
    """
    whole = labels.masked_fill(labels == IGNORE, 0)
    back = top_class(painter(encoder.latents(painter.paint(whole))))
    scores = []
    for k in range(1, len(painter.colours)):
        a, b = (back == k) & (labels != IGNORE), labels == k
        if b.any():
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return torch.stack(scores).mean() if scores else torch.ones((), device=labels.device)


class LatentMap(Settings):
    """Slot member `latent_map`: the mean squared error of the mapped latents with those of the mask (GMS, eq. 2).

    Attributes:
        min_codec: lowest Dice that masks of the first batch may have with what the autoencoder gives back of them.
    """

    min_codec: float = Field(0.85, ge=0, le=1)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar) of the supervised images; cells in which a pixel is ignored do not count.

        Raises:
            UserError: at the first step, if the autoencoder cannot hold these masks; for another network than "gms".
        """
        branch = scene.topology.branches[0]
        net = scene.topology.network(branch)
        encoder, painter = net.encoder, net.heads[0]
        if not isinstance(encoder, LatentEncoder) or not isinstance(painter, MaskPainter):
            raise UserError("regulariser latent_map", rule="this network maps no latents", repair="add model.name=gms "
                            "model.autoencoder=DIR, the folder of a fitted autoencoder")
        labels = scene.supervised.labels
        if scene.step == 0:
            self._check(codec_dice(encoder, painter, labels))
        ignored = (labels == IGNORE)[:, None]
        wanted = encoder.latents(painter.paint(labels.masked_fill(ignored[:, 0], 0)))
        counted = 1 - F.adaptive_max_pool2d(ignored.float(), wanted.shape[-2:])
        squared = (scene.seen_by(branch).hidden.float() - wanted).square().mean(dim=1, keepdim=True) * counted
        per_image = squared.flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1).clamp(min=1)
        return by_kind(per_image, scene.supervised.synthetic, scene.w_syn)

    def _check(self, dice: torch.Tensor) -> None:
        if float(dice) < self.min_codec:
            raise UserError(f"the autoencoder gives masks back with a Dice of {float(dice):.3f}", rule="below "
                            f"min_codec={self.min_codec:g} the masks that it can paint are not those to be learnt",
                            repair="train the autoencoder longer, take a larger size or fewer autoencoder.widths, or "
                            "another model.name")


LATENTS: dict[str, type[Settings]] = {"latent_map": LatentMap}
"""Regularisers of this module by the name that method files use."""
