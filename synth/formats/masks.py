"""Label masks without images: of other patients, of another data set, or drawn from a shape model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synth.core.checks import IGNORE, UserError, check_mask, check_unique
from synth.core.space import resize_mask
from synth.formats.decode import decode_mask, parse_mask_map
from synth.formats.folder import image_files
from synth.formats.info import read_declared
from synth.formats.survey import MAX_INFERRED, number_classes, says_ignore


@dataclass(frozen=True)
class MaskSet:
    """Label masks, each read when asked for.

    Attributes:
        paths: PNG files, by name. classes: names in the order of their index; the first is background.
        mask_map: class index of each value on disk, None = they are the same.
    """

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    mask_map: Mapping[int, int] | None
    where: str

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the files, without .png."""
        return tuple(path.stem for path in self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns labels (H, W) uint8."""
        return decode_mask(self.paths[index], str(self.paths[index]), mask_map=self.mask_map)

    def select(self, indices: list[int]) -> MaskSet:
        """Returns the masks `indices`, in that order."""
        return MaskSet(tuple(self.paths[i] for i in indices), self.classes, self.mask_map, self.where)

    def arrays(self, size: int) -> np.ndarray:
        """Returns all masks at `size` x `size` px, (N, S, S) uint8, nearest neighbour."""
        return np.stack([resize_mask(self[i], (size, size)) for i in range(len(self))])


def load_masks(path: str | Path, *, mask_map: str | Mapping[int, int] | None = None) -> MaskSet:
    """Returns the masks of a folder: PNG files in its masks/, or in itself; each is read and checked once here.

    Class names come from its dataset.json; without it they are numbered.

    Args:
        path: the folder; images/ beside masks/ are not looked at. mask_map: class index of each mask value, such as
            '0:0,255:1,254:1'; several values may become one class.

    Raises:
        UserError: naming the file, the rule that it breaks and the repair.
    """
    root, table = Path(path), parse_mask_map(mask_map)
    folder = root / "masks" if (root / "masks").is_dir() else root
    if not folder.is_dir():
        raise UserError(str(root), rule="no such folder", repair="give the folder that holds the masks")
    files = image_files(folder)
    if not files:
        raise UserError(str(folder), rule="no masks found", repair="put label masks there, as PNG files")
    other = [p for p in files if p.suffix.lower() != ".png"]
    if other:
        raise UserError(str(other[0]), rule="masks are PNG; JPEG would change class indices", repair="export it again")
    check_unique([p.stem for p in files], str(folder))
    own = read_declared(root)
    # A map may join classes: the names then hold no longer.
    kept = own.classes if table is None else None
    counts = np.zeros(256, np.int64)
    for file in files:
        mask = decode_mask(file, str(file), mask_map=table)
        check_mask(mask, str(file), n_classes=len(kept) if kept else MAX_INFERRED,
                   declared=says_ignore(own, table))
        counts += np.bincount(mask.ravel(), minlength=256)
    shown = np.flatnonzero(counts[:IGNORE])
    if not shown[1:].size and not shown[:1].any():
        raise UserError(str(folder), rule=f"no foreground anywhere: no pixel of {len(files)} masks is of a class > 0",
                        repair="check the masks; if 255 means foreground, give mask_map='0:0,255:1'")
    classes = kept or number_classes(np.flatnonzero(counts), table, str(root))
    return MaskSet(tuple(files), classes, table, str(root))
