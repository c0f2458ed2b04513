"""Masks that lie beside a set, by its ids: pseudo-labels that another program made, or further annotators' masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synth.core.checks import IGNORE, UserError, check_mask
from synth.core.pairs import DataInfo, ImageSet
from synth.core.space import resize_mask
from synth.formats.decode import decode_mask
from synth.formats.info import read_declared
from synth.formats.survey import MAX_INFERRED


@dataclass(frozen=True)
class Stored:
    """Pseudo-labels of N images at the working resolution.

    Attributes:
        labels: class indices (N, S, S) uint8, 255 = nothing is said. confidence: (N, S, S) uint8, 255 = certain.
    """

    labels: np.ndarray
    confidence: np.ndarray

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits over every value."""
        return print_of(self.labels, self.confidence)


def print_of(*arrays: np.ndarray) -> str:
    """Returns 16 hexadecimal digits over the shapes and values of arrays of any shape."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, str(array.dtype))).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def read_stored(folder: str | Path, images: ImageSet, size: int, n_classes: int) -> Stored:
    """Returns the pseudo-labels masks/ID.png of every image, and their confidence/ID.png, 1 where there is no folder.

    Raises:
        UserError: naming the file that is missing, has another size than its image, or says a class that there is not.
    """
    root = Path(folder)
    labels = _read(root / "masks", images, size)
    for item, mask in zip(images.items, labels, strict=True):
        stray = [int(v) for v in np.unique(mask) if v >= n_classes and v != IGNORE]
        if stray:
            raise UserError(str(root / "masks" / f"{item.id}.png"), rule=f"its values {stray[:8]} are outside the "
                            f"classes 0..{n_classes - 1} (255 = nothing is said)", repair="write class indices")
    if not ((labels > 0) & (labels != IGNORE)).any():
        raise UserError(str(root / "masks"), rule="no file says any foreground; 255 means that nothing is said",
                        repair="write foreground as its class index, 1 and up")
    told = (root / "confidence").is_dir()
    return Stored(labels, _read(root / "confidence", images, size) if told else np.full_like(labels, 255))


def info_of(images: ImageSet, folder: str | Path) -> DataInfo:
    """Returns what images without any labelled pair mean: their own classes, or those that their stored masks show.

    Raises:
        UserError: if there are no masks, or their values are grey levels, as of 0/255 masks.
    """
    if images.info.n_classes > 1:
        return images.info
    if not (Path(folder) / "masks").is_dir():
        raise UserError(str(folder), rule="no folder masks/ here", repair="give the folder that synth label wrote, or "
                        "one with masks/ID.png")
    masks = [decode_mask(path, str(path)) for path in sorted((Path(folder) / "masks").glob("*.png"))]
    top = max((int(mask[mask != IGNORE].max(initial=0)) for mask in masks), default=0)
    if not 1 <= top < MAX_INFERRED:
        raise UserError(str(Path(folder) / "masks"), rule=f"its values go up to {top}, and no dataset.json beside the "
                        "images lists the classes", repair="write class indices, 255 = nothing is said, and list the "
                        "classes in dataset.json")
    return replace(images.info, classes=("background", *(f"class_{i}" for i in range(1, top + 1))))


def read_observers(folders: Sequence[str | Path], pairs: ImageSet, size: int) -> np.ndarray:
    """Returns further annotators' labels (O, N, S, S) uint8: masks/ID.png in each folder for every pair.

    Raises:
        UserError: naming the file that is missing, has another size than its image, or is no label mask.
    """
    found = []
    for folder in folders:
        masks = _read(Path(folder) / "masks", pairs, size)
        is_told = read_declared(Path(folder)).classes is not None
        for item, mask in zip(pairs.items, masks, strict=True):
            check_mask(mask, str(Path(folder) / "masks" / f"{item.id}.png"), n_classes=pairs.info.n_classes,
                       declared=is_told)
        found.append(masks)
    return np.stack(found)


def _read(folder: Path, images: ImageSet, size: int) -> np.ndarray:
    return np.stack([_read_one(folder / f"{item.id}.png", item.read()[0].shape[:2], size) for item in images.items])


def _read_one(path: Path, shape: tuple[int, int], size: int) -> np.ndarray:
    if not path.is_file():
        raise UserError(str(path), rule="no such file, and every image of the set needs one",
                        repair="write it, or leave its image out of the set")
    mask = decode_mask(path, str(path))
    if mask.shape != shape:
        raise UserError(str(path), rule=f"it is {mask.shape[0]}x{mask.shape[1]} but its image is {shape[0]}x{shape[1]}",
                        repair="write it at the image's own size")
    return resize_mask(mask, (size, size))
