"""What is made of the labelled images' labels before they teach: (scene) -> Supervised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segtrain.labels.affinity import AFFINITY
from segtrain.labels.observers import OBSERVERS
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene, Supervised


class Dense(Settings):
    """Slot member `dense`: labels as they are; 255 is ignored."""

    def __call__(self, scene: Scene) -> Supervised:
        """Returns the supervised images as they are."""
        return scene.supervised


LABELS: dict[str, type[Settings]] = {"dense": Dense, **OBSERVERS, **AFFINITY}
"""Label policies by the name that method files use."""
