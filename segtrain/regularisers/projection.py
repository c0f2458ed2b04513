"""A volume's slices together: their projection along the slice axis shall show every vessel once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from segtrain.losses.partial import focal_tversky
from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.space import labels_to_onehot

if TYPE_CHECKING:
    from segtrain.scene import Scene


def project(values: torch.Tensor, stacks: torch.Tensor) -> torch.Tensor:
    """Returns the largest value along the slices of each stack, (S, C, H, W), of values (B, C, H, W).

    `stacks` (B,) names the stack of each slice; -1 = none. Stacks of one slice are left out.
    """
    names, sizes = stacks[stacks >= 0].unique(return_counts=True)
    return torch.stack([values[stacks == name].amax(dim=0) for name in names[sizes > 1]]) if (sizes > 1).any() \
        else values[:0]


class Projection(Settings):
    """Slot member `projection`: focal Tversky loss of maximum projections along the slices that the batch holds.

    It is a projection through as many slices as are drawn together, not through the volume, and along one axis.
    A pixel that is 255 in any slice is left out: what is not known may be what the projection shows.
    """

    miss: float = Field(0.7, ge=0, le=1)
    gamma: float = Field(0.75, gt=0)
    needs: ClassVar[tuple[str, ...]] = ("stacks",)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar) of the first branch's predictions of the labelled slices.

        Raises:
            UserError: if the streams do not draw stacks.
        """
        if "stacks" not in scene.batch:
            raise UserError("projection", rule="it needs neighbouring slices, and the batch's images are drawn by "
                            "themselves", repair="write stack: 4 into the method file, and give volumes as groups")
        stacks, labels = scene.batch["stacks"], scene.supervised.labels
        logits = scene.seen_by(scene.topology.branches[0]).logits
        unknown = project((labels == IGNORE)[:, None].float(), stacks)
        prob = project(logits.float().softmax(dim=1), stacks)
        truth = project(labels_to_onehot(labels, scene.n_classes), stacks)
        if not len(prob):
            return logits.sum() * 0
        return focal_tversky(prob, truth, (unknown[:, 0] == 0).float(), miss=self.miss, gamma=self.gamma)


PROJECTION: dict[str, type[Settings]] = {"projection": Projection}
"""Regularisers of this module by the name that method files use."""
