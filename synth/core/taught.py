"""What a network was trained with, as hashes, so that nothing of it is tested on as if it were new.

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
from synth.core.pairs import Arrays, ImageSet, Item, Pair

FILE = "taught.json"


@dataclass(frozen=True)
class Taught:
    """Hashes of training images, and of the names of their groups.

    Attributes:
        images: of pixels, a segmenter's at its working resolution, a generator's at their own: the sets drawn with it
            go to networks of any size. Blank images are left out: they are no evidence of a copy.
        groups: of labelled and unlabelled images, and of whatever synthetic pairs were made from.
    """

    images: frozenset[str]
    groups: frozenset[str]

    @classmethod
    def of(cls, arrays: Iterable[Arrays], sets: Iterable[ImageSet | None]) -> Taught:
        """Returns what `arrays`, the images that were shown, and the groups of `sets` leave to know.

        And, where pairs of `sets` were drawn, what their generators had been taught.
        """
        images = {_pixels(image) for part in arrays for image in part.images}
        given = [images_of for images_of in sets if images_of is not None]
        groups = {name for images_of in given for item in images_of.items for name in stem_of(item)}
        own = cls(frozenset(images - {""}), frozenset(_name(group) for group in groups))
        return joined([own, *(images_of.taught for images_of in given)])

    @classmethod
    def of_sets(cls, sets: Iterable[ImageSet | None]) -> Taught:
        """Returns `of` for the images of `sets` at their own size: what a generator that is fitted on them knows."""
        given = [images_of for images_of in sets if images_of is not None]
        return cls.of((images_of.native(1) for images_of in given), given)

    def save(self, folder: Path) -> None:
        """Writes taught.json, whole or not at all; one that says the same is left as it is."""
        if Taught.load(folder) != self:
            write_json(folder / FILE, {key: sorted(value) for key, value in asdict(self).items()})

    @classmethod
    def load(cls, folder: Path) -> Taught | None:
        """Returns what lies in `folder`; None for what was saved before this was written down.

        Raises:
            UserError: for a taught.json that is none of ours.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(frozenset(found["images"]), frozenset(found["groups"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(str(path), rule="it is not the list of hashes that training writes",
                            repair="delete it; what was taught is then not known") from None

    def has_group(self, group: str) -> bool:
        """Returns whether something of the group of that name was learnt from."""
        return _name(group) in self.groups

    def has_image(self, pixels: np.ndarray) -> bool:
        """Returns whether these very pixels (C, H, W) were learnt from."""
        return _pixels(pixels) in self.images


def stem_of(item: Item | Pair) -> tuple[str, ...]:
    """Returns the groups that a pair stems from: its own, and those of whatever a drawn one was made from."""
    return tuple(dict.fromkeys((item.group, *(item.made.parent_groups if item.made else ()))))


def joined(known: Iterable[Taught | None]) -> Taught | None:
    """Returns all that is known together; None where nothing is."""
    there = [one for one in known if one is not None]
    if not there:
        return None
    return Taught(frozenset().union(*(one.images for one in there)), frozenset().union(*(one.groups for one in there)))


def _name(group: str) -> str:
    return sha256(f"group {group}".encode())[:16]


def _pixels(image: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(image).tobytes())[:16] if image.min() < image.max() else ""
