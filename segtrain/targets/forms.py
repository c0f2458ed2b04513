"""A source that lets a network label from its own form, or its own band, of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segtrain.targets.target import Target, soft
from segtrain.transforms.bands import Band
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


class OwnForm(Settings):
    """Slot member `own_form`: what a network says of the form of the images that it is trained on.

    Attributes:
        name: who says it; null = who labels for the branch that sees the view. input: the form; null = the images.
        band: of that; null = all.
    """

    name: str | None = None
    input: str | None = None
    band: Band | None = None

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) that it says of the clean images in that form."""
        name = self.name or scene.topology.labeller(branch)
        return soft(scene.said_of_form(name, form=self.input, band=self.band).logits)


FORMS: dict[str, type[Settings]] = {"own_form": OwnForm}
"""Sources of this module by the name that method files use."""
