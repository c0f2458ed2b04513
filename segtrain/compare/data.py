"""The images of a comparison, decoded once at the working resolution, and which of them play which part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from segtrain.compare.beside import Beside
from segtrain.compare.splits import LabelDraw
from synth.core.checks import IGNORE, UserError
from synth.core.files import hash_json, sha256
from synth.core.lost import Lost
from synth.core.pairs import ImageSet, PairSet, memory_set
from synth.core.space import from_channels, resize_image, resize_mask, to_channels


@dataclass(frozen=True)
class Parts:
    """Who plays which part; all at the working resolution, in memory, in order of id.

    Attributes:
        labelled: pairs that label draws choose from. pile: images without masks, None if there are none.
        notes: what the data set says of itself, and what was decided about it; for the report.
        source: fingerprint of everything that was read, before any split.
        stored, observers: masks beside the training images, for the methods that read them; None = none.
    """

    labelled: PairSet
    pile: ImageSet | None
    test: PairSet
    draws: tuple[LabelDraw, ...]
    notes: tuple[str, ...]
    source: str
    stored: Beside | None = None
    observers: Beside | None = None

    def labelled_of(self, draw: LabelDraw) -> PairSet:
        """Returns the pairs that `draw` labels."""
        return choose(self.labelled, draw.labelled)

    def unlabelled_of(self, draw: LabelDraw) -> ImageSet | None:
        """Returns every training image that `draw` does not label, without masks, by id; None if there are none."""
        hidden = [i for i, name in enumerate(self.labelled.ids) if name in set(draw.hidden)]
        sets = ([hide(self.labelled.select(hidden))] if hidden else []) + ([self.pile] if self.pile else [])
        return join(sets) if sets else None

    def training(self) -> ImageSet:
        """Returns every training image, without masks, by id: the same for every label draw."""
        return join([hide(self.labelled)] + ([self.pile] if self.pile else []))


def fingerprint(images: ImageSet | None) -> str | None:
    """Returns 16 hexadecimal digits over ids, groups, pixels, labels and their meaning, and weights if any; None for no
    set."""
    if images is None:
        return None
    rows = [(p.id, p.group, sha256(p.image.tobytes()), None if p.mask is None else sha256(p.mask.tobytes()),
             *([] if p.weight == 1 else [p.weight])) for p in images]
    return hash_json([dataclasses.asdict(images.info), rows])


def shrink(images: ImageSet, size: int, notes: list[str] | None = None) -> ImageSet:
    """Returns the set in memory at `size` x `size` px, by id; masks come along if the set has them.

    Objects that are too small for that are warned of, and noted in `notes`.

    Raises:
        UserError: if an item is synthetic, or a mask is ignored everywhere.
    """
    order = sorted(range(len(images)), key=lambda i: images.ids[i])
    pixels, masks, spacings, lost = [], [], [], Lost(images.info.classes, size)
    for i in order:
        pair = images[i]
        if pair.made is not None:
            raise UserError(f"{images.where}: {pair.id}", rule="it is synthetic, and a comparison starts from real "
                            "data", repair="leave it out")
        spacings.append(_scaled(images.items[i].spacing, pair.image.shape[:2], size))
        pixels.append(from_channels(resize_image(to_channels(pair.image), size)))
        if pair.mask is not None:
            masks.append(resize_mask(pair.mask, (size, size)))
            lost.look(pair.id, pair.mask, masks[-1])
            if bool((masks[-1] == IGNORE).all()):
                raise UserError(f"{images.where}: {pair.id}", rule="every pixel of its mask is ignored",
                                repair="leave it out")
    lost.warn(images.where, len(masks))
    if notes is not None and lost.found:
        notes.append(lost.text(images.where, len(masks)))
    small = memory_set(pixels, masks or None, images.info, ids=[images.ids[i] for i in order],
                       groups=[images.groups[i] for i in order], spacings=spacings)
    items = [dataclasses.replace(item, weight=images.items[i].weight)
             for item, i in zip(small.items, order, strict=True)]
    return type(small)(items, images.info, where=images.where)


def _scaled(spacing: tuple[float, float] | None, shape: tuple[int, ...], size: int) -> tuple[float, float] | None:
    return spacing and (spacing[0] * shape[0] / size, spacing[1] * shape[1] / size)


def choose(images: ImageSet, ids: Iterable[str]) -> ImageSet:
    """Returns the items named `ids`, in the order of the set."""
    wanted = set(ids)
    return images.select([i for i, name in enumerate(images.ids) if name in wanted])


def hide(images: ImageSet) -> ImageSet:
    """Returns the images with their masks out of reach."""
    items = [dataclasses.replace(item, read=_Blind(item.read)) for item in images.items]
    return ImageSet(items, images.info, where=images.where)


@dataclass(frozen=True)
class _Blind:
    """Reads an item without its mask: a hidden label is out of reach, not merely unused."""

    inner: Callable[[], tuple[np.ndarray, np.ndarray | None]]

    def __call__(self) -> tuple[np.ndarray, None]:
        return self.inner()[0], None


def with_range(images: ImageSet, span: tuple[float, float]) -> ImageSet:
    """Returns the same images, `span` as their intensity range."""
    if tuple(images.info.intensity_range) == span:
        return images
    return type(images)(images.items, dataclasses.replace(images.info, intensity_range=span), where=images.where)


def join(sets: Sequence[ImageSet]) -> ImageSet:
    """Returns all items of `sets`, by id."""
    items = sorted((item for s in sets for item in s.items), key=lambda item: item.id)
    return ImageSet(items, sets[0].info, where=" + ".join(dict.fromkeys(s.where for s in sets)))
