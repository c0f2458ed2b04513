"""The people's layout: images/NAME.(png|jpg|...), masks/NAME.png, groups.csv, dataset.json; or just image files."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np

from synth.core.checks import UserError, check_unique
from synth.core.pairs import Item
from synth.formats.decode import decode_image, decode_mask
from synth.formats.survey import Options, Source

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_BESIDE = (".txt", ".json", ".jsonl", ".csv", ".md", ".db", ".ini")


def image_files(folder: Path) -> list[Path]:
    """Returns the image files directly in `folder`, by name; hidden files and notes (.txt, .csv, ...) are passed over.

    Raises:
        UserError: if the folder holds another kind of file, or two images of one name.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    others = [p for p in files if p.suffix.lower() not in (*IMAGE_SUFFIXES, *_BESIDE)]
    if others:
        raise UserError(str(others[0]), rule=f"images end in {', '.join(IMAGE_SUFFIXES)}",
                        repair="convert it, or move it elsewhere")
    check_unique([p.stem for p in images], str(folder))
    return images


def folder_sources(root: Path, options: Options) -> list[Source]:
    """Returns the items of `root`: of its images/ (and masks/ if labelled), or of a plain folder of images.

    Raises:
        UserError: if a mask is missing, or groups.csv and the images disagree.
    """
    folder = root / "images" if (root / "images").is_dir() else root
    images = image_files(folder)
    masks = _mask_files(root, images) if options.labelled else {}
    groups = _read_groups(root, [p.stem for p in images])
    return [Source(Item(p.stem, groups.get(p.stem, p.stem), partial(read_files, p, masks.get(p.stem), options)),
                   str(p), str(masks.get(p.stem, ""))) for p in images]


def read_files(image: Path, mask: Path | None, options: Options) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns pixels (H, W[, 3]) and labels (H, W) uint8 (None without a mask) of two files."""
    pixels = decode_image(image, str(image), channels=options.channels)
    return pixels, None if mask is None else decode_mask(mask, str(mask), mask_map=options.mask_map)


def _mask_files(root: Path, images: list[Path]) -> dict[str, Path]:
    folder = root / "masks"
    if not folder.is_dir():
        raise UserError(str(folder), rule="labelled images need a folder masks/ beside images/",
                        repair="put one PNG per image there, named as the image")
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    masks = {p.stem: p for p in files if p.suffix.lower() == ".png"}
    missing = [p for p in images if p.stem not in masks]
    if missing:
        other = [p.name for p in files if p.stem == missing[0].stem]
        found = f"; found {other[0]}, but masks are PNG (JPEG would change class indices)" if other else ""
        raise UserError(str(missing[0]), rule=f"its mask masks/{missing[0].stem}.png is missing ({len(missing)} of "
                        f"{len(images)} images have none){found}", repair="add the mask, or move the image elsewhere")
    return masks


def _read_groups(root: Path, ids: list[str]) -> dict[str, str]:
    path = root / "groups.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        if not {"name", "group"} <= set(reader.fieldnames or ()):
            raise UserError(str(path), rule="its first line is name,group", repair="add that line")
        rows = [(_stem(row["name"] or ""), (row["group"] or "").strip()) for row in reader]
    check_unique([name for name, _ in rows], str(path))
    groups = dict(rows)
    unknown, missing = sorted(set(groups) - set(ids)), sorted(set(ids) - set(groups))
    nameless = [name for name, group in rows if not group]
    for names, rule in ((unknown, "groups.csv names it, but no such image is there"),
                        (missing, "the image is not in groups.csv, so its group is unknown"),
                        (nameless, "its group is empty")):
        if names:
            raise UserError(f"{path}: {names[0]}", rule=rule, repair="make groups.csv list each image once, "
                            "or delete groups.csv and each image is its own group")
    return groups


def _stem(name: str) -> str:
    path = Path(name.strip())
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name.strip()
