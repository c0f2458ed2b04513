"""Objects that are too small for the working resolution: their images would be said to show none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from synth.core.checks import IGNORE

log = logging.getLogger(__name__)


class Lost:
    """Classes that masks show at their own size and no longer at `size` px, by the image that lost them."""

    def __init__(self, classes: Sequence[str], size: int) -> None:
        self.classes, self.size = classes, size
        self.found: dict[str, list[int]] = {}

    def look(self, name: str, mask: np.ndarray, small: np.ndarray) -> None:
        """Compares the labels (H, W) of an image, uint8, with the same ones resized."""
        gone = (np.bincount(mask.ravel(), minlength=256) > 0) & (np.bincount(small.ravel(), minlength=256) == 0)
        if classes := [int(k) for k in np.flatnonzero(gone) if k not in (0, IGNORE)]:
            self.found[name] = classes

    def text(self, where: str, n: int) -> str | None:
        """Returns one line on the masks of a set of n, None if none lost a class."""
        if not self.found:
            return None
        first, classes = next(iter(self.found.items()))
        names = ", ".join(self.classes[k] if k < len(self.classes) else str(k) for k in classes)
        return (f"{where}: {len(self.found)} of {n} masks lose a class at {self.size} px ({first}: {names}), and their "
                "images then count as without it; take a larger size, or size and patch of the images' own resolution")

    def warn(self, where: str, n: int) -> None:
        """Logs that line, once for the same set and size."""
        if (text := self.text(where, n)) is not None:
            _warn_once(text)


@lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    log.warning(text)
