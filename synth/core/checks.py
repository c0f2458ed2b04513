"""What a valid image, mask and pair is. Every error names the file or value, the rule, and the repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np

IGNORE = 255
"""Label value that no loss, metric or gate counts."""


MIN_SIDE = 8
"""Least height and width of an image, px."""


class UserError(ValueError):
    """A user's mistake: one line that names the file or value, the rule it breaks, and the repair."""

    def __init__(self, what: str, *, rule: str, repair: str) -> None:
        self.what, self.rule, self.repair = what, rule, repair
        super().__init__(" ".join(f"{what}: {rule}. Repair: {repair}.".split()))


def check_read(sets: Mapping[str, object]) -> None:
    """Returns nothing; raises if one of `sets`, by the name of its argument, is a path and not yet a set.

    Raises:
        UserError: naming the argument and how such a set is read.
    """
    for name, given in sets.items():
        if isinstance(given, str | PathLike):
            reader = "load_pairs" if name in ("labelled", "synthetic", "test") else "load_images"
            raise UserError(f"{name}={str(given)!r}", rule="a set of images is wanted, and this is a path",
                            repair=f"read it with synth.{reader}({str(given)!r})")


def check_image(image: np.ndarray, name: str) -> None:
    """Returns nothing; raises if `image` is not (H, W) or (H, W, 3), uint8 or uint16, at least 8 px a side.

    Raises:
        UserError: naming `name`, the rule and the repair.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(name, rule=f"pixels are {image.dtype}, must be 8 or 16 bit unsigned",
                        repair="write it again as an 8 or 16 bit PNG")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise UserError(name, rule=f"an image is grey (H, W) or RGB (H, W, 3), this one has shape {image.shape}",
                        repair="convert it to grey or RGB without an alpha channel")
    if min(image.shape[:2]) < MIN_SIDE:
        raise UserError(name, rule=f"an image has at least {MIN_SIDE} px a side, this one is "
                        f"{image.shape[0]}x{image.shape[1]}", repair="remove it")


def check_written(channels: int, bit_depth: int, where: str) -> None:
    """Returns nothing; raises if images of `channels` and `bit_depth` can be read, but not be written as PNG.

    Raises:
        UserError: naming `where`, the set that such images come from.
    """
    if channels == 3 and bit_depth > 8:  # noqa: PLR2004 - channels of RGB, bits of what PIL writes of it
        raise UserError(where, rule=f"its images are read as RGB of {bit_depth} bit, and RGB is written with 8 bits "
                        "per channel", repair="read them with channels=1, or export them at 8 bit")


def check_mask(mask: np.ndarray, name: str, *, n_classes: int, declared: bool = False) -> None:
    """Returns nothing; raises if `mask` is not (H, W) with values below `n_classes` or 255 (ignore).

    Args:
        declared: whether somebody says what its values mean. Else one that holds 0 and 255 alone is refused: there 255
            is more likely foreground.

    Raises:
        UserError: naming `name`, the stray values and the mapping that would repair them.
    """
    if mask.ndim != 2:
        raise UserError(name, rule=f"a label mask has one channel, this one has shape {mask.shape}",
                        repair="save class indices as a single-channel PNG")
    values = np.unique(mask)
    if not declared and set(values.tolist()) == {0, 255}:
        raise UserError(name, rule="its values are 0 and 255, but 255 means ignore and foreground is a class index",
                        repair="give the mapping: mask_map='0:0,255:1' (data.mask_map on the command line)")
    stray = [int(v) for v in values if v >= n_classes and v != IGNORE]
    if stray:
        raise UserError(name, rule=f"mask values {stray[:8]} are outside the classes 0..{n_classes - 1} (255 = ignore)",
                        repair="list all classes in dataset.json, or map values with mask_map='0:0,...'")


def check_pair(image: np.ndarray, mask: np.ndarray, name: str) -> None:
    """Returns nothing; raises if image (H, W[, 3]) and mask (H, W) differ in height or width.

    Raises:
        UserError: naming `name` and both sizes.
    """
    if image.shape[:2] != mask.shape[:2]:
        raise UserError(name, rule=f"the image is {image.shape[0]}x{image.shape[1]} but its mask is "
                        f"{mask.shape[0]}x{mask.shape[1]}", repair="export image and mask at one size")


def check_unique(names: Sequence[str], where: str) -> None:
    """Returns nothing; raises if two entries of `names` are equal.

    Raises:
        UserError: naming the repeated id.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{where}: {name}", rule="two files share this name, and the name is the pair's id",
                            repair="rename one of them")
        seen.add(name)
