"""Reads every item of a set once: checks it against the rules and finds what its pixels mean."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from synth.core.checks import IGNORE, UserError, check_mask, check_pair
from synth.core.pairs import DataInfo, Item
from synth.formats.info import Declared

MAX_INFERRED = 64
"""Without a list of classes, mask values from here on are taken for grey levels, not for classes."""

RANGE_SHARES = (0.0005, 0.9995)
"""Shares of a 16-bit set's pixels below the two ends of its intensity range."""

K = TypeVar("K")


@dataclass(frozen=True)
class Source:
    """An item and what errors call its image and its mask."""

    item: Item
    image_name: str
    mask_name: str = ""


@dataclass(frozen=True)
class Options:
    """How to read a set: `channels` and `mask_map` convert, `like` is the set that this one goes with."""

    labelled: bool
    channels: int | None = None
    mask_map: Mapping[int, int] | None = None
    like: DataInfo | None = None


def says_ignore(own: Declared, mask_map: Mapping[int, int] | None) -> bool:
    """Returns whether a set says that 255 is ignore: its own dataset.json lists classes, or the map comes to 255."""
    return own.classes is not None or IGNORE in (mask_map or {}).values()


def survey(sources: Sequence[Source], declared: Declared, options: Options, *, where: str,
           own: Declared | None = None) -> DataInfo:
    """Returns what the pixels and labels of a set mean, after reading each item once (one in memory at a time).

    Classes, channels and bit depth come from `declared` or else from the files. The intensity range of 8-bit images
    is (0, 255); of 16-bit images, the 0.05 and 99.95 percentiles of all their pixels.

    Args:
        own: what the set's own dataset.json says, if `declared` has more than that, from another set.

    Raises:
        UserError: naming the first file that breaks a rule.
    """
    kinds: list[tuple[int, int]] = []
    levels = np.zeros(65536, np.int64)
    labels = np.zeros(256, np.int64)
    n_classes = len(declared.classes) if declared.classes else IGNORE
    is_told = says_ignore(own or declared, options.mask_map)
    for source in sources:
        image, mask = source.item.read()
        kinds.append((1 if image.ndim == 2 else 3, image.dtype.itemsize * 8))
        if image.dtype == np.uint16:
            levels += np.bincount(image.ravel(), minlength=65536)
        if mask is not None:
            check_pair(image, mask, source.image_name)
            check_mask(mask, source.mask_name, n_classes=n_classes, declared=is_told or source.item.made is not None)
            labels += np.bincount(mask.ravel(), minlength=256)
    channels = _one_kind(sources, [k[0] for k in kinds], options.channels or declared.channels, _describe_channels)
    bit_depth = _one_kind(sources, [k[1] for k in kinds], declared.bit_depth, _describe_depth)
    _check_like(options.like, channels, bit_depth, where)
    seen = [*np.flatnonzero(labels), *(options.mask_map or {}).values()]
    classes = declared.classes or number_classes(seen, options.mask_map, where)
    if options.labelled and not labels[1:IGNORE].any():
        raise UserError(where, rule=f"no foreground anywhere: no pixel of {len(sources)} masks is of a class > 0",
                        repair="check the masks; if 255 means foreground, give mask_map='0:0,255:1'")
    intensity = declared.intensity_range or ((0.0, 255.0) if bit_depth == 8 else range_16_bit(levels))
    return DataInfo(classes, channels, bit_depth, intensity, declared.modality, declared.name or "unnamed")


def _describe_channels(value: int) -> tuple[str, str]:
    return ("grey" if value == 1 else "RGB"), "convert explicitly with channels=1 or channels=3"


def _describe_depth(value: int) -> tuple[str, str]:
    return f"{value} bit", "export all images at one bit depth"


def _one_kind(sources: Sequence[Source], kinds: Sequence[int], wanted: int | None,
              describe: Callable[[int], tuple[str, str]]) -> int:
    usual = wanted or max(sorted(set(kinds)), key=kinds.count)
    odd = [i for i, kind in enumerate(kinds) if kind != usual]
    if odd:
        says = "dataset.json says" if wanted else f"{len(kinds) - len(odd)} of the {len(kinds)} images are"
        raise UserError(sources[odd[0]].image_name, rule=f"it is {describe(kinds[odd[0]])[0]}, but {says} "
                        f"{describe(usual)[0]}", repair=describe(usual)[1])
    return usual


def _check_like(like: DataInfo | None, channels: int, bit_depth: int, where: str) -> None:
    if like and (channels, bit_depth) != (like.channels, like.bit_depth):
        raise UserError(where, rule=f"its images are {_describe_channels(channels)[0]}, {bit_depth} bit, but those of "
                        f"the set it goes with are {_describe_channels(like.channels)[0]}, {like.bit_depth} bit",
                        repair="convert explicitly with channels=1 or channels=3, or export both at one bit depth")


def number_classes(values: Collection[int], mask_map: Mapping[int, int] | None, where: str) -> tuple[str, ...]:
    """Returns a name for background and for each class among `values`, those that masks hold and nobody has declared.

    255 is no class. A gap is refused, unless `mask_map`, if they come out of one, names what is missing: its classes
    would be there for nobody, and be right on every image.

    Raises:
        UserError: naming `where`, the values and the mapping that would close the gap.
    """
    found = sorted({int(v) for v in values} - {IGNORE} | {0})
    top = found[-1]
    if top >= MAX_INFERRED:
        raise UserError(where, rule=f"mask values go up to {top} and no dataset.json lists the classes",
                        repair="list the classes in dataset.json, or map values with mask_map='0:0,...'")
    missing = sorted(set(range(top)) - set(found) - set((mask_map or {}).values()))
    if missing:
        end = next(v for v in range(missing[0], top + 1) if v not in missing) - 1
        gap = f"{missing[0]} never occurs" if end == missing[0] else f"{missing[0]} to {end} never occur"
        given = f"{', '.join(map(str, found[:-1]))} and {top}"
        close = ",".join(f"{old}:{new}" for new, old in enumerate(found)) + (",255:255" if IGNORE in values else "")
        raise UserError(where, rule=f"mask values{' by mask_map' if mask_map else ''} are {given}, but {gap}, and no "
                        "dataset.json lists the classes", repair=("number the classes in mask_map without a gap"
                        if mask_map else f"give mask_map='{close}' (data.mask_map on the command line)")
                        + ", or list the classes in dataset.json")
    return ("background", *(f"class_{i}" for i in range(1, top + 1)))


def range_16_bit(levels: np.ndarray) -> tuple[float, float]:
    """Returns the intensity range of 16-bit images, of whose pixels `levels` (65536,) counts each value."""
    share = np.cumsum(levels) / levels.sum()
    low, high = (int(np.searchsorted(share, q)) for q in RANGE_SHARES)
    return float(low), float(max(high, low + 1))
