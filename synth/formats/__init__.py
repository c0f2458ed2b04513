"""Readers and writers of pair sets: image folders, imagefolder with metadata.jsonl, parquet shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from synth.core.checks import UserError, check_unique
from synth.core.pairs import DataInfo, ImageSet, PairSet
from synth.core.taught import Taught
from synth.formats.decode import encode_png, parse_mask_map
from synth.formats.folder import folder_sources, image_files
from synth.formats.imagefolder import (
    METADATA,
    check_finished,
    imagefolder_sources,
    names_masks,
    write_folder,
    write_imagefolder,
)
from synth.formats.info import merge_like, read_declared
from synth.formats.masks import MaskSet, load_masks
from synth.formats.shards import read_shards, shard_name, shard_sources, write_dataset_files, write_shard
from synth.formats.survey import Options, Source, survey
from synth.formats.tables import check_no_tables

__all__ = ["MaskSet", "encode_png", "load_images", "load_masks", "load_pairs", "load_set", "parse_mask_map",
           "read_shards", "shard_name", "write_dataset_files", "write_folder", "write_imagefolder", "write_shard"]


def load_pairs(path: str | Path, *, mask_map: str | Mapping[int, int] | None = None, channels: int | None = None,
               split: str | None = None, like: DataInfo | None = None) -> PairSet:
    """Returns the image-mask pairs of a folder; each is read and checked once here, and again when asked for.

    The folder holds images/, masks/ (NAME.png) and perhaps groups.csv, spacing.csv, domains.csv and dataset.json; or
    metadata.jsonl with file_name and mask_file_name; or parquet shards in data/. Without groups every image is its own
    group.

    Args:
        path: the folder. mask_map: class index of each mask value, such as '0:0,255:1'; None takes them as they are.
        channels: 1 or 3 converts between grey and RGB; None refuses a set that mixes them.
        split: of the shards, "train" if None. like: the set that this one goes with, whose classes and intensity
            range then hold here too.

    Raises:
        UserError: naming the file, the rule that it breaks and the repair.
    """
    options = Options(labelled=True, channels=_checked_channels(channels), mask_map=parse_mask_map(mask_map), like=like)
    found, info = _load(Path(path), options, split)
    return PairSet([source.item for source in found], info, where=str(path), taught=Taught.load(Path(path)))


def load_images(path: str | Path, *, channels: int | None = None, split: str | None = None,
                like: DataInfo | None = None) -> ImageSet:
    """Returns the images of a folder without their masks: any format of `load_pairs`, or a folder of image files.

    Where neither dataset.json nor `like` lists classes, `background` is the only one.

    Args:
        path, channels, split: as in `load_pairs`. like: the labelled set that these images go with.

    Raises:
        UserError: naming the file, the rule that it breaks and the repair.
    """
    options = Options(labelled=False, channels=_checked_channels(channels), like=like)
    found, info = _load(Path(path), options, split)
    return ImageSet([source.item for source in found], info, where=str(path), taught=Taught.load(Path(path)))


def load_set(path: str | Path) -> ImageSet:
    """Returns the pairs of a folder, as `load_pairs`, or its images where its metadata.jsonl names no mask at all."""
    return load_pairs(path) if names_masks(Path(path)) else load_images(path)


def _load(root: Path, options: Options, split: str | None) -> tuple[list[Source], DataInfo]:
    if not root.is_dir():
        raise UserError(str(root), rule="no such folder", repair="give the folder that holds the images")
    sources = _sources(root, options, split)
    if not sources and any((root / "data").glob("*-of-*.parquet")):
        raise UserError(str(root), rule=f"the split {split or 'train'!r} holds no pair, so none passed the gates",
                        repair="see with synth show why, and draw again")
    if not sources:
        raise UserError(str(root), rule="no images found", repair="put them into a folder images/ there")
    check_unique([source.item.id for source in sources], str(root))
    own = read_declared(root)
    declared = merge_like(own, options.like, where=str(root), labelled=options.labelled)
    return sources, survey(sources, declared, options, where=str(root), own=own)


def _sources(root: Path, options: Options, split: str | None) -> list[Source]:
    if any((root / "data").glob("*-of-*.parquet")):
        check_no_tables(root, "data/*.parquet")
        return shard_sources(root, options, split=split or "train")
    if split is not None:
        raise UserError(f"split={split}", rule=f"only parquet shards have splits, and {root} holds none in data/",
                        repair="drop split=")
    if (root / METADATA).is_file():
        return imagefolder_sources(root, options)
    check_finished(root)
    if options.labelled and not (root / "images").is_dir():
        raise UserError(str(root), rule="neither images/ and masks/, nor metadata.jsonl, nor data/*.parquet is there"
                        + (", only images without masks" if image_files(root) else ""),
                        repair="put images into images/ and masks of the same name into masks/")
    return folder_sources(root, options)


def _checked_channels(channels: int | None) -> int | None:
    if channels not in (None, 1, 3):
        raise UserError(f"channels={channels}", rule="images are grey (1) or RGB (3)", repair="write channels=1 or 3")
    return channels
