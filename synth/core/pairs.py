"""The data contract: a Pair, sets of them that read lazily, and their arrays at a working resolution."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from synth.core.checks import IGNORE, UserError, check_unique
from synth.core.lost import Lost
from synth.core.space import enlarge, resize_image, resize_mask, to_channels

if TYPE_CHECKING:
    from synth.core.taught import Taught


@dataclass(frozen=True)
class DataInfo:
    """What a data set's pixels and labels mean; `dataset.json` on disk.

    Attributes:
        classes: names in the order of their index; the first is background.
        channels: 1 (grey) or 3 (RGB).
        bit_depth: 8 or 16.
        intensity_range: the pixel values that become -1 and 1 in unit space.
        modality: free text.
    """

    classes: tuple[str, ...]
    channels: int
    bit_depth: int
    intensity_range: tuple[float, float]
    modality: str = "unknown"
    name: str = "unnamed"
    ignore_index: int = IGNORE
    version: int = 1

    @property
    def n_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.classes)

    @property
    def dtype(self) -> np.dtype:
        """Pixel type: uint8 or uint16."""
        return np.dtype(np.uint8 if self.bit_depth == 8 else np.uint16)


@dataclass(frozen=True)
class Provenance:
    """From what and how a synthetic pair was made: enough to draw it again and to recall it.

    Attributes:
        parents: ids of the real pairs it shows; parent_groups: their groups.
        generator: content hash; layout, settings: JSON text of the edits and of the sampler.
        kept_sha256: hash of the pixels kept from the transformed source: those under the foreground, or, where objects
            were painted anew, those around them.
        scores, verdict, reason: of the gates; the verdict is "kept" or "rejected".
    """

    parents: tuple[str, ...]
    parent_groups: tuple[str, ...]
    seed: int
    generator: str
    layout: str
    settings: str
    kept_sha256: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    verdict: str = "kept"
    reason: str = ""


@dataclass(frozen=True)
class Pair:
    """One image, pixels (H, W) or (H, W, 3), and its label mask (H, W) uint8, None where it has none.

    Attributes:
        weight: what it counts in training, 0 to 1.
    """

    id: str
    group: str
    image: np.ndarray
    mask: np.ndarray | None
    origin: str = "real"
    made: Provenance | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Item:
    """A pair not yet read: who it is, and how to read (image, mask).

    Attributes:
        spacing: height and width of its pixels, mm, where known. weight: what it counts in training.
        domain: site, scanner or stain, where known.
    """

    id: str
    group: str
    read: Callable[[], tuple[np.ndarray, np.ndarray | None]]
    origin: str = "real"
    made: Provenance | None = None
    spacing: tuple[float, float] | None = None
    weight: float = 1.0
    domain: str | None = None


class Rows(Sequence[np.ndarray]):
    """One column of a set at native size, read when asked for: pixels (C, H, W) or labels (H, W), row by row."""

    def __init__(self, read: Callable[[int], np.ndarray], rows: Sequence[int]) -> None:
        self.read, self.rows = read, tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | list[int]) -> np.ndarray | Rows:
        if isinstance(index, list):
            return Rows(self.read, [self.rows[i] for i in index])
        return self.read(self.rows[index])


@dataclass(frozen=True)
class Arrays:
    """A set at one working resolution, decoded once; or at native size (`ImageSet.native`), decoded row by row.

    Attributes:
        images: pixels (N, C, S, S), uint8 or uint16. masks: labels (N, S, S) uint8, or None without masks.
        weights: what each counts in training; () = all 1.
    """

    images: np.ndarray | Rows
    masks: np.ndarray | Rows | None
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    info: DataInfo
    weights: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits over ids, groups, pixels, labels and what they mean, and weights if any."""
        words = (self.ids, self.groups, self.info, *([self.weights] if self.weights else []))
        digest = hashlib.sha256(repr(words).encode())
        if self.is_native:
            for i, shape in enumerate(self.shapes):
                digest.update(repr(shape).encode())
                for column in (self.images, *([] if self.masks is None else [self.masks])):
                    digest.update(np.ascontiguousarray(column[i]).data)
            return digest.hexdigest()[:16]
        digest.update(np.ascontiguousarray(self.images).data)
        if self.masks is not None:
            digest.update(np.ascontiguousarray(self.masks).data)
        return digest.hexdigest()[:16]

    @property
    def is_native(self) -> bool:
        """Whether the rows have their own sizes and are read when asked for."""
        return isinstance(self.images, Rows)

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each row, px."""
        if not self.is_native:
            return (tuple(self.images.shape[-2:]),) * len(self)
        return tuple(tuple(image.shape[-2:]) for image in self.images)

    def without_masks(self) -> Arrays:
        """Returns the same images with their labels dropped."""
        return dataclasses.replace(self, masks=None)

    def select(self, indices: Sequence[int]) -> Arrays:
        """Returns the rows `indices`, in that order."""
        rows = list(indices)
        return dataclasses.replace(
            self, images=self.images[rows], masks=None if self.masks is None else self.masks[rows],
            ids=tuple(self.ids[i] for i in rows), groups=tuple(self.groups[i] for i in rows),
            weights=tuple(self.weights[i] for i in rows) if self.weights else ())


N_CACHED = 4
"""Items at native size that are held in memory: a pair, the partner it is mixed with, and a little more."""


class ImageSet(Sequence[Pair]):
    """Images, read when asked for. Indexing returns a `Pair` whose mask is None.

    Attributes:
        taught: what the generator that drew them was fitted on, where known: more than any of them has as a parent.
    """

    def __init__(self, items: Sequence[Item], info: DataInfo, *, where: str = "memory",
                 taught: Taught | None = None) -> None:
        if not items:
            raise UserError(where, rule="no images found", repair="put at least one image there")
        check_unique([item.id for item in items], where)
        self.items = tuple(items)
        self.info = info
        self.where = where
        self.taught = taught

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Pair:
        item = self.items[index]
        image, mask = item.read()
        return Pair(item.id, item.group, image, mask, item.origin, item.made, item.weight)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(item.id for item in self.items)

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of each item, in order."""
        return tuple(item.group for item in self.items)

    @property
    def weights(self) -> tuple[float, ...]:
        """What each item counts in training, in order; () = all 1."""
        weights = tuple(item.weight for item in self.items)
        return () if all(w == 1 for w in weights) else weights

    def select(self, indices: Sequence[int]) -> ImageSet:
        """Returns the items `indices` as a set of the same kind."""
        return type(self)([self.items[i] for i in indices], self.info, where=self.where, taught=self.taught)

    def without_group(self, group: str) -> ImageSet:
        """Returns the set without the items of `group` and without everything drawn from them."""
        kept = [i for i, item in enumerate(self.items)
                if item.group != group and not (item.made and group in item.made.parent_groups)]
        return self.select(kept)

    def arrays(self, size: int) -> Arrays:
        """Returns all items at `size` x `size` px: bilinear, masks nearest; warns of objects too small for it."""
        images, masks, lost = [], [], Lost(self.info.classes, size)
        for pair in self:
            images.append(resize_image(to_channels(pair.image), size))
            if pair.mask is not None:
                masks.append(resize_mask(pair.mask, (size, size)))
                lost.look(pair.id, pair.mask, masks[-1])
        lost.warn(self.where, len(masks))
        stacked = np.stack(masks) if len(masks) == len(images) else None
        return Arrays(np.stack(images), stacked, self.ids, self.groups, self.info, self.weights)

    def native(self, least: int) -> Arrays:
        """Returns all items at their own size, read when asked for; those below `least` px a side enlarged to it."""
        @lru_cache(maxsize=N_CACHED)
        def read(i: int) -> tuple[np.ndarray, np.ndarray | None]:
            pair = self[i]
            return enlarge(to_channels(pair.image), pair.mask, least=least)

        n = range(len(self))
        masks = Rows(lambda i: read(i)[1], n) if isinstance(self, PairSet) else None
        return Arrays(Rows(lambda i: read(i)[0], n), masks, self.ids, self.groups, self.info, self.weights)


class PairSet(ImageSet):
    """Image-mask pairs, read when asked for."""


def memory_set(  # noqa: PLR0913 - one argument for each column of a set
        images: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None, info: DataInfo, *, ids: Sequence[str],
        groups: Sequence[str], spacings: Sequence[tuple[float, float] | None] = ()) -> ImageSet:
    """Returns a set over arrays in memory: pixels (H, W[, 3]) and labels (H, W); a PairSet if masks are given."""
    def reader(i: int) -> Callable[[], tuple[np.ndarray, np.ndarray | None]]:
        return lambda: (images[i], None if masks is None else masks[i])

    items = [Item(ids[i], groups[i], reader(i), spacing=spacings[i] if spacings else None) for i in range(len(images))]
    return (ImageSet if masks is None else PairSet)(items, info)


def check_joinable(labelled: ImageSet | Arrays, other: ImageSet | Arrays, where: str) -> None:
    """Returns nothing; raises if `other`, unlabelled images read from `where`, cannot be learnt from with `labelled`.

    Raises:
        UserError: if they differ in channels, depth or intensity range, or share an id.
    """
    mine, theirs = ((i.channels, i.bit_depth, tuple(i.intensity_range)) for i in (labelled.info, other.info))
    if mine != theirs:
        words = "of {} channel(s), {} bit, range {}"
        raise UserError(where, rule=f"unlabelled images {words.format(*theirs)}, labelled ones {words.format(*mine)}",
                        repair="give data.channels=1 or 3, load them with "
                        "like=labelled.info, or convert one set")
    shared = set(labelled.ids) & set(other.ids)
    if shared:
        raise UserError(where, rule=f"id {sorted(shared)[0]!r} is in the labelled set too",
                        repair="remove it from one of the two folders, or rename it if it is another image")
