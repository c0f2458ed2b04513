"""Predicted masks shall look like real ones, which need not belong to the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import nn

from synth.core.checks import IGNORE
from synth.core.config import Settings
from synth.core.space import labels_to_onehot

if TYPE_CHECKING:
    from segtrain.scene import Scene


def frozen(net: nn.Module, masks: torch.Tensor) -> torch.Tensor:
    """Returns scores (B, 1, h, w) that `net` gives masks (B, K, H, W), with a gradient for the masks alone."""
    bare = getattr(net, "module", net)
    fixed = {name: value.detach() for name, value in (*bare.named_parameters(), *bare.named_buffers())}
    mode = bare.training
    bare.eval()  # the scores of the predictions must not move the estimates behind the bounded slopes
    scores = torch.func.functional_call(bare, fixed, (masks,))
    bare.train(mode)
    return scores


def least_squares(net: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Returns the two halves of a least-squares GAN in one sum (scalar), Mao et al. 2017, eq. 9.

    `real` and `fake` are masks (B, K, H, W). The network learns to give 1 and 0; what made `fake` learns to get 1.
    Neither sees the other's gradient.
    """
    both = net(torch.cat([real, fake.detach()]))
    told = 0.5 * ((both[:len(real)] - 1).square().mean() + both[len(real):].square().mean())
    return told + 0.5 * (frozen(net, fake) - 1).square().mean()


class Adversarial(Settings):
    """Slot member `adversarial`: the first branch's predictions of the supervised images against dense label masks.

    Real are the masks of which at most `most_unsaid` is 255, such as synthetic pairs' beside scribbles. Each prediction
    is hidden where its real counterpart says nothing, else that would tell them apart. Without a real mask it is 0.
    """

    head: str = "discriminator"
    most_unsaid: float = Field(0.5, ge=0, lt=1)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns `least_squares` (scalar) of real masks and predictions."""
        labels, logits = scene.supervised.labels, scene.seen_by(scene.topology.branches[0]).logits
        rows = ((labels == IGNORE).float().mean(dim=(1, 2)) <= self.most_unsaid).nonzero()[:, 0]
        if not len(rows):
            return logits.sum() * 0
        # Not its own mask: the pairing must not tell the discriminator what supervision tells already.
        counterpart = rows[(torch.arange(len(labels), device=rows.device) + 1) % len(rows)]
        real = labels_to_onehot(labels[counterpart], scene.n_classes)
        fake = logits.float().softmax(dim=1) * (labels[counterpart] != IGNORE)[:, None]
        return least_squares(scene.head(self.head), real, fake)


ADVERSARIAL: dict[str, type[Settings]] = {"adversarial": Adversarial}
"""Regularisers of this module by the name that method files use."""
