"""Pseudo-labels that another program has stored in a folder, as a source of targets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from segtrain.targets.target import Target, from_labels
from synth.core.checks import UserError
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


class Store(Settings):
    """Slot member `store`: what a folder says of the unlabelled images, moved as their weak view moved them.

    Its confidence is the pixel's weight, where there is any. Pixels of which it says nothing, or beyond the border of
    the image, are not valid.

    Attributes:
        tau: pixels of less confidence are dropped.
    """

    tau: float = Field(0.0, ge=0, le=1)
    needs: ClassVar[tuple[str, ...]] = ("stored",)

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) stored for the unlabelled images.

        Raises:
            UserError: if the streams have none.
        """
        if "stored_labels" not in scene.batch:
            raise UserError("source store", rule="there are no stored pseudo-labels",
                            repair="pass stored= (data.stored on the command line)")
        labels = scene.warp.move(scene.batch["stored_labels"], nearest=True)
        confidence = scene.warp.move(scene.batch["stored_confidence"], nearest=True)
        said = from_labels(labels, scene.n_classes)
        inside = scene.warp.known(said.valid.new_ones(said.valid.shape))
        target = replace(said, weight=confidence * said.valid, valid=said.valid & inside)
        return target.narrowed(confidence >= self.tau) if self.tau else target


STORE: dict[str, type[Settings]] = {"store": Store}
"""Sources of this module by the name that method files use."""
