"""The people's layout: images/NAME.(png|jpg|...), masks/NAME.png, *.csv, dataset.json; or just image files."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np

from synth.core.checks import UserError, check_unique
from synth.core.pairs import Item
from synth.formats.decode import IMAGE_SUFFIXES, decode_image, decode_mask
from synth.formats.survey import Options, Source
from synth.formats.tables import check_tables, read_table, same_form

log = logging.getLogger(__name__)

SPACING = ("row_mm", "column_mm")
"""Columns of spacing.csv: height and width of an image's pixels."""

_BESIDE = (".txt", ".json", ".jsonl", ".csv", ".md", ".db", ".ini")
_WHOLE = ("images", "masks")
_ASIDE = (".", "@", "__", "thumb", "preview")


def image_files(folder: Path) -> list[Path]:
    """Returns the image files directly in `folder`, by name; hidden files and notes (.txt, .csv, ...) are passed over.

    Raises:
        UserError: if the folder holds another kind of file, a link to nothing, two images of one name, or, being called
            images or masks, folders with more of them. Elsewhere those are warned of.
    """
    files = _files_in(folder)
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    others = [p for p in files if p.suffix.lower() not in (*IMAGE_SUFFIXES, *_BESIDE)]
    if others:
        raise UserError(str(others[0]), rule=f"images end in {', '.join(IMAGE_SUFFIXES)}",
                        repair="convert it, or move it elsewhere")
    check_unique([same_form(p.stem) for p in images], str(folder))
    if images or folder.name in _WHOLE:
        _check_below(folder)
    return images


def _files_in(folder: Path) -> list[Path]:
    """Returns the files directly in `folder`, by name, hidden ones left out; raises if one is a link to nothing."""
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    broken = [p for p in entries if p.is_symlink() and not p.exists() and p.suffix.lower() not in _BESIDE]
    if broken:
        raise UserError(str(broken[0]), rule=f"it is a link to {broken[0].readlink()}, where nothing is ({len(broken)} "
                        f"of {len(entries)} files here are such links)", repair="copy the files, or mend the links")
    return [p for p in entries if p.is_file()]


def _check_below(folder: Path) -> None:
    """Refuses image files in folders below `folder`, for they are not read; warns, if others' folders may be there."""
    # Hidden folders, thumbnails and what a NAS or a Mac leaves behind hold nothing of the set.
    below = [p for sub in sorted(folder.iterdir()) if sub.is_dir() and not sub.name.lower().startswith(_ASIDE)
             for p in sorted(sub.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES
             and not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if below and folder.name in _WHOLE:
        raise UserError(str(below[0]), rule=f"files in folders below {folder.name}/ are not read, and {len(below)} are "
                        "there", repair=f"move them into {folder.name}/ itself under names of their own")
    if below:
        log.warning("%s: not read, nor are the other image files in folders below %s (%d in all)", below[0], folder,
                    len(below))


def folder_sources(root: Path, options: Options) -> list[Source]:
    """Returns the items of `root`: of its images/ (and masks/ if labelled), or of a plain folder of images.

    Raises:
        UserError: if a mask is missing, groups.csv and the images disagree, or such a table is under another name.
    """
    folder = root / "images" if (root / "images").is_dir() else root
    images = image_files(folder)
    check_tables(root)
    masks = _mask_files(root, images) if options.labelled else {}
    ids = [same_form(p.stem) for p in images]
    groups, spacings, weights = _read_groups(root, ids), _read_spacings(root, ids), _read_weights(root, ids)
    domains = _read_domains(root, ids)
    items = [Item(p.stem, groups.get(name, p.stem), partial(read_files, p, masks.get(name), options),
                  spacing=spacings.get(name), weight=weights.get(name, 1.0),
                  domain=domains.get(name)) for name, p in zip(ids, images, strict=True)]
    return [Source(item, str(p), str(masks.get(name, ""))) for item, name, p in zip(items, ids, images, strict=True)]


def read_files(image: Path, mask: Path | None, options: Options) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns pixels (H, W[, 3]) and labels (H, W) uint8 (None without a mask) of two files."""
    pixels = decode_image(image, str(image), channels=options.channels)
    return pixels, None if mask is None else decode_mask(mask, str(mask), mask_map=options.mask_map)


def _mask_files(root: Path, images: list[Path]) -> dict[str, Path]:
    folder = root / "masks"
    if not folder.is_dir():
        raise UserError(str(folder), rule="labelled images need a folder masks/ beside images/",
                        repair="put one PNG per image there, named as the image")
    files = _files_in(folder)
    masks = {same_form(p.stem): p for p in files if p.suffix.lower() == ".png"}
    names = {same_form(p.stem): p for p in images}
    drawn = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    left = [p for p in drawn if same_form(p.stem) not in names]
    missing = [name for name in names if name not in masks]
    if missing:
        raise UserError(str(names[missing[0]]), rule=f"its mask masks/{missing[0]}.png is missing ({len(missing)} of "
                        f"{len(images)} images have none){_found(missing[0], files, left)}",
                        repair="add the mask, or move the image elsewhere")
    if left:
        log.warning("%s: not used, for there is no image of this name (%d of %d masks have none)", left[0], len(left),
                    len(drawn))
    return masks


def _found(name: str, files: list[Path], left: list[Path]) -> str:
    """Returns what may be the missing mask of image `name`: of its name, or of those `left` the one most like it."""
    other = [p.name for p in files if same_form(p.stem) == name]
    if other:
        return f"; found {other[0]}, but masks are PNG (JPEG would change class indices)"
    names = {same_form(p.stem): p.name for p in left}
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; found {names[near[0]]}, but a mask has the name of its image" if near else ""


def _read_groups(root: Path, ids: list[str]) -> dict[str, str]:
    return {name: group for name, (group,) in read_table(root / "groups.csv", ("group",), ids).items()}


def _read_domains(root: Path, ids: list[str]) -> dict[str, str]:
    """Returns the domain of the images in domains.csv, which may serve several folders and leave images out."""
    table = read_table(root / "domains.csv", ("domain",), ids, is_whole=False)
    return {name: domain for name, (domain,) in table.items()}


def _read_spacings(root: Path, ids: list[str]) -> dict[str, tuple[float, float]]:
    """Returns the pixels' height and width, mm, of the images in spacing.csv."""
    path = root / "spacing.csv"
    return {name: spacing_of(texts, f"{path}: {name}")
            for name, texts in read_table(path, SPACING, ids).items()}


def spacing_of(values: Sequence[str | float], where: str) -> tuple[float, float]:
    """Returns height and width of a pixel, mm, from two numbers or texts.

    Raises:
        UserError: naming `where`, unless both are lengths.
    """
    try:
        height, width = (float(value) for value in values)
    except (TypeError, ValueError):
        height = width = math.nan
    if not (0 < height < math.inf and 0 < width < math.inf):
        raise UserError(where, rule=f"its spacing {','.join(map(str, values))} is not two lengths in mm",
                        repair="give the height and the width of its pixels")
    return height, width


def _read_weights(root: Path, ids: list[str]) -> dict[str, float]:
    """Returns what each image in weights.csv counts in training."""
    path, weights = root / "weights.csv", {}
    for name, (text,) in read_table(path, ("weight",), ids).items():
        try:
            weights[name] = float(text)
        except ValueError:
            weights[name] = math.nan
        if not 0 <= weights[name] <= 1:
            raise UserError(f"{path}: {name}", rule=f"its weight {text} is no number from 0 to 1",
                            repair="give what the pair counts in training, 1 = in full")
    if weights and not any(weights.values()):
        raise UserError(str(path), rule="every weight is 0, so there is nothing to learn from", repair="mend the file")
    return weights
