"""Pseudo-labels whose errors are modelled: a matrix says how what is there is mislabelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from segtrain.losses.transition import confusion, forward_corrected_ce, one_hot_rows, rows_of
from segtrain.ranks import summed
from synth.core.checks import UserError
from synth.core.config import Settings
from synth.core.space import top_class

if TYPE_CHECKING:
    from segtrain.scene import Scene


class Corrected(Settings):
    """Slot member `corrected`: `forward_corrected_ce` of a view behind T = (1 - own) T_class + own T_pixel.

    T_class is the running average of how the labeller's words stand for the labelled images' classes; T_pixel is the
    head's. Inspired by GeoT (Yu et al. 2025), which does so for points.

    Attributes:
        view: whose student and target; its own loss is null. head: its name. own: the head's share. decay: of T_class.
    """

    view: int = Field(0, ge=0)
    head: str = "transition"
    own: float = Field(0.1, ge=0, le=1)
    decay: float = Field(0.999, ge=0, lt=1)
    needs: ClassVar[tuple[str, ...]] = ("unlabelled",)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar); it reaches the student and the head.

        Raises:
            UserError: if the view's target has no hard labels.
        """
        shown = scene.view(self.view)
        if shown.target.hard is None:
            raise UserError("corrected", rule="it needs hard labels", repair="add argmax to the view's target")
        by_class = self._class_matrix(scene, scene.topology.labeller(shown.branch)).to(shown.images.device)
        matrix = by_class.float()[None, :, :, None, None]
        if self.own:
            shares = one_hot_rows(by_class.float(), shown.target.hard)
            matrix = (1 - self.own) * matrix + self.own * scene.head(self.head)(shown.target.prob, shares)
        return forward_corrected_ce(shown.seen.logits, shown.target, matrix)

    @torch.no_grad()
    def _class_matrix(self, scene: Scene, labeller: str) -> torch.Tensor:
        k, given = scene.n_classes, scene.supervised
        before = scene.memory.get("transition", torch.eye(k, dtype=torch.float64, device=given.labels.device))
        said = top_class(scene.said_of_supervised(labeller).logits)
        now = rows_of(summed(confusion(said, given.labels, k)), before)
        scene.memory["transition"] = self.decay * before + (1 - self.decay) * now
        return scene.memory["transition"]


CORRECTED: dict[str, type[Settings]] = {"corrected": Corrected}
"""Regularisers of this module by the name that method files use."""
