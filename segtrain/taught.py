"""What a segmenter was trained with, as hashes, so that nothing of it is scored as if it were new.

A hash of a short name can be guessed: the file is for whoever holds the data, not for those who are given the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from synth.core.checks import UserError
from synth.core.files import sha256, write_json
from synth.core.pairs import Arrays, ImageSet, Item, enlarge
from synth.core.space import resize_image, to_channels

FILE = "taught.json"


@dataclass(frozen=True)
class Taught:
    """Hashes of training images as the network saw them, and of the names of their groups.

    Attributes:
        images: of pixels at the working resolution, blank images left out: they are no evidence of a copy.
        groups: of labelled and unlabelled images, and of whatever synthetic pairs were made from.
    """

    images: frozenset[str]
    groups: frozenset[str]

    @classmethod
    def of(cls, arrays: Iterable[Arrays], sets: Iterable[ImageSet | None]) -> Taught:
        """Returns what `arrays`, the images that were shown, and the groups of `sets` leave to know."""
        images = {_pixels(image) for part in arrays for image in part.images}
        items = [item for images_of in sets if images_of is not None for item in images_of.items]
        groups = {name for item in items for name in _stem(item)}
        return cls(frozenset(images - {""}), frozenset(_name(group) for group in groups))

    def save(self, folder: Path) -> None:
        """Writes taught.json, whole or not at all."""
        write_json(folder / FILE, {key: sorted(value) for key, value in asdict(self).items()})

    @classmethod
    def load(cls, folder: Path) -> Taught | None:
        """Returns what lies in `folder`; None for a segmenter that was saved before this was written down."""
        path = folder / FILE
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(frozenset(found["images"]), frozenset(found["groups"]))

    def check(self, item: Item, image: np.ndarray, *, size: int, tiles: bool, where: str) -> None:
        """Returns nothing; raises if training knew the pixels (H, W[, 3]) of a test case, or its patient.

        A group that is named as its image says nothing: so are those of sets without groups.csv.

        Raises:
            UserError: naming the case.
        """
        pixels = to_channels(image)
        seen = enlarge(pixels, None, least=size)[0] if tiles else resize_image(pixels, size)
        if _pixels(seen) in self.images:
            raise UserError(f"{where}: {item.id}", rule="this segmenter was trained with this image, so its score "
                            "would say nothing", repair="leave it out of the test set")
        if item.group != item.id and _name(item.group) in self.groups:
            raise UserError(f"{where}: {item.id}", rule=f"this segmenter was trained with images of group {item.group}",
                            repair="leave that group out of the test set")


def _stem(item: Item) -> tuple[str, ...]:
    return (item.group, *(item.made.parent_groups if item.made else ()))


def _name(group: str) -> str:
    return sha256(f"group {group}".encode())[:16]


def _pixels(image: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(image).tobytes())[:16] if image.min() < image.max() else ""
