"""images/NAME.png and annotators/WHO/NAME.png: who labelled what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synth.core.checks import IGNORE, UserError, check_mask
from synth.core.pairs import ImageSet
from synth.formats import load_images, parse_mask_map
from synth.formats.decode import decode_mask
from synth.formats.folder import image_files
from synth.formats.info import read_declared
from synth.formats.survey import number_classes, says_ignore
from synth.formats.tables import same_form

FOLDER = "annotators"


@dataclass(frozen=True)
class Crowd:
    """Images and the masks that several annotators gave them.

    Attributes:
        images: whose `info` holds the classes. raters: names of the annotators.
        masks: for each image (R, H, W) uint8; all 255 where an annotator did not label it.
    """

    images: ImageSet
    raters: tuple[str, ...]
    masks: tuple[np.ndarray, ...]

    def labelled(self) -> np.ndarray:
        """Returns who labelled what, (N, R) bool."""
        return np.array([[bool((mask != IGNORE).any()) for mask in masks] for masks in self.masks])


def read_crowd(root: str | Path, *, mask_map: str | None = None, channels: int | None = None) -> Crowd:
    """Returns the images of `root`/images and their masks in `root`/annotators/WHO/NAME.png.

    An annotator may have labelled some of the images only; every image needs one who has. 255 = this annotator says
    nothing here. groups.csv and dataset.json count as they do for pairs.

    Raises:
        UserError: naming the folder or file, the rule that it breaks and the repair.
    """
    root = Path(root)
    folders = [p for p in sorted((root / FOLDER).iterdir()) if p.is_dir() and not p.name.startswith(".")] if (
        root / FOLDER).is_dir() else []
    if not (root / "images").is_dir() or len(folders) < 2:
        raise UserError(str(root), rule=f"several annotators' masks lie in {FOLDER}/WHO/NAME.png, for two or more of "
                        f"them, beside images/; here are {len(folders)}", repair="move each one's masks there")
    images = load_images(root, channels=channels)
    files = [_files(folder, images.ids) for folder in folders]
    for name in images.ids:
        if not any(name in own for own in files):
            raise UserError(f"{root / 'images'}: {name}", rule=f"no annotator labelled it: there is no {FOLDER}/WHO/"
                            f"{name}.png", repair="add a mask, or move the image elsewhere")
    mapping = parse_mask_map(mask_map)
    masks = tuple(_masks(item.id, item.read()[0].shape[:2], files, mapping) for item in images.items)
    own = read_declared(root)
    info = replace(images.info, classes=own.classes or _classes(masks, mapping, root))
    for name, found in zip(images.ids, masks, strict=True):
        for of_rater, mask in zip(files, found, strict=True):
            if name in of_rater:
                check_mask(mask, str(of_rater[name]), n_classes=len(info.classes),
                           declared=says_ignore(own, mapping))
    return Crowd(ImageSet(images.items, info, where=images.where), tuple(f.name for f in folders), masks)


def _files(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    ids = {same_form(name): name for name in names}
    files = {ids.get(same_form(path.stem), path.stem): path for path in image_files(folder)}
    wrong = [path for path in files.values() if path.suffix.lower() != ".png"]
    if wrong:
        raise UserError(str(wrong[0]), rule="masks are PNG (JPEG would change class indices)",
                        repair="export it again as PNG")
    strange = sorted(set(files) - set(names))
    if strange:
        raise UserError(str(files[strange[0]]), rule="there is no image of this name in images/",
                        repair="name a mask as its image, or move it elsewhere")
    if not files:
        raise UserError(str(folder), rule="this annotator labelled nothing", repair="add masks, or remove the folder")
    return files


def _masks(name: str, shape: tuple[int, int], files: list[dict[str, Path]],
           mapping: Mapping[int, int] | None) -> np.ndarray:
    found = np.full((len(files), *shape), IGNORE, np.uint8)
    for r, own in enumerate(files):
        if name in own:
            mask = decode_mask(own[name], str(own[name]), mask_map=mapping)
            if mask.shape != shape:
                raise UserError(str(own[name]), rule=f"it is {mask.shape[0]}x{mask.shape[1]} but its image is "
                                f"{shape[0]}x{shape[1]}", repair="write it at the image's own size")
            found[r] = mask
    return found


def _classes(masks: tuple[np.ndarray, ...], mapping: Mapping[int, int] | None, root: Path) -> tuple[str, ...]:
    classes = number_classes({int(v) for mask in masks for v in np.unique(mask)}, mapping, str(root))
    if len(classes) == 1:
        raise UserError(str(root), rule="no annotator marked any foreground; 255 means that nothing is said",
                        repair="if 255 means foreground, give mask_map='0:0,255:1'")
    return classes
