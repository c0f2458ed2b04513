"""Masks that lie beside the images of a comparison: pseudo-labels of another program, further annotators' masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from segtrain.streams.stored import print_of, read_observers, read_stored
from synth.core.files import replace_file
from synth.core.pairs import ImageSet
from synth.formats import encode_png

TRUST = ("Pseudo-labels come from data.stored: whether what made them had seen test images or their masks is not known "
         "here, and decides whether its arms may be believed.")
"""What the report says wherever they are used."""


@dataclass(frozen=True)
class Beside:
    """Masks at the working resolution, for the images that play their part in any label draw.

    Attributes:
        folders: name of a folder, such as "masks", and its masks (N, S, S) uint8. ids: of the images, in order.
    """

    folders: dict[str, np.ndarray]
    ids: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over names and values; every run of an arm is named by it."""
        return print_of(np.frombuffer(repr((sorted(self.folders), self.ids)).encode(), np.uint8),
                        *(self.folders[name] for name in sorted(self.folders)))

    def write(self, out: Path) -> Path:
        """Returns `out`, in which every mask is a file FOLDER/ID.png; what is there already stays."""
        for name, masks in self.folders.items():
            (out / name).mkdir(parents=True, exist_ok=True)
            for image, mask in zip(self.ids, masks, strict=True):
                path = out / name / f"{image}.png"
                if not path.exists():
                    replace_file(path, lambda temporary, data=encode_png(mask): temporary.write_bytes(data))
        return out


def stored_beside(folder: str, images: ImageSet, size: int, n_classes: int) -> Beside:
    """Returns the pseudo-labels that `folder` holds of `images`, which are at their native size.

    Raises:
        UserError: as `read_stored`.
    """
    found = read_stored(folder, images, size, n_classes)
    return Beside({"masks": found.labels, "confidence": found.confidence}, images.ids)


def observers_beside(folders: tuple[str, ...], pairs: ImageSet, size: int) -> Beside:
    """Returns the further annotators' masks of `pairs`, which are at their native size.

    Raises:
        UserError: as `read_observers`.
    """
    found = read_observers(folders, pairs, size)
    return Beside({f"{k}/masks": masks for k, masks in enumerate(found)}, pairs.ids)
