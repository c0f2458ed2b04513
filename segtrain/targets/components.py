"""Operators that look at the shape of what was labelled: connected components."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from segtrain.targets.target import Target
from synth.core.checks import UserError
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


def islands(labels: np.ndarray, class_index: int) -> np.ndarray:
    """Returns (H, W) bool: pixels of a class of labels (H, W) outside its largest component; corners connect."""
    parts, n = ndimage.label(labels == class_index, np.ones((3, 3)))
    if n < 2:
        return np.zeros(labels.shape, dtype=bool)
    return (parts > 0) & (parts != 1 + np.bincount(parts.ravel())[1:].argmax())


def largest_component(target: Target, *, classes: tuple[int, ...] = ()) -> Target:
    """Returns `target` with only the largest component of each class valid; logs the share of pixels in others.

    Args:
        classes: those it applies to; () = all but background, which is never touched.

    Raises:
        UserError: if the target has no hard labels.
    """
    if target.hard is None:
        raise UserError("target largest_component", rule="it needs hard labels", repair="put argmax before it")
    labels = target.labels().cpu().numpy()
    found = np.zeros(labels.shape, dtype=bool)
    for row, own in zip(labels, found, strict=True):
        present = set(np.unique(row).tolist()) - {0}
        for k in present & set(classes or range(1, 255)):
            own |= islands(row, k)
    lost = torch.from_numpy(found).to(target.valid.device)
    return replace(target, valid=target.valid & ~lost, stats={**target.stats, "islands": lost.float().mean()})


class LargestComponent(Settings):
    """Slot member `largest_component`: in every image and class, only the largest connected component teaches.

    Attributes:
        classes: where that holds; () = every class but background. Leave out those that come in several pieces.
    """

    classes: tuple[int, ...] = ()

    def __call__(self, target: Target, scene: Scene) -> Target:
        """Returns `largest_component(target, classes=self.classes)`."""
        return largest_component(target, classes=self.classes)


COMPONENTS: dict[str, type[Settings]] = {"largest_component": LargestComponent}
"""Operators of this module by the name that method files use."""
