"""Who says what is in the unlabelled images: the first member of a view's target, (scene, branch) -> Target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from segtrain.targets.target import Target, from_prob, soft
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


class Teacher(Settings):
    """Slot member `teacher`: the topology's labeller for the branch that sees the view, or the network `name`."""

    name: str | None = None

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) that it says of the clean images."""
        return soft(scene.said(self.name or scene.topology.labeller(branch)).logits)


class Mean(Settings):
    """Slot member `mean`: the mean probability of several networks; none named = all branches."""

    names: tuple[str, ...] = ()

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) that they say together of the clean images."""
        names = self.names or scene.topology.branches
        return from_prob(torch.stack([scene.said(n).logits.float().softmax(dim=1) for n in names]).mean(dim=0))


class Labels(Settings):
    """Slot member `labels`: for views of the labelled images, their own labels."""

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (B, K, H, W) of the supervised images; its weight is theirs."""
        return scene.supervised_target()


SOURCES: dict[str, type[Settings]] = {"teacher": Teacher, "mean": Mean, "labels": Labels}
"""Sources of this module by the name that method files use."""
