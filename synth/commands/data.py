"""What several commands read from the shell: groups of settings, and the real data that they name."""

from __future__ import annotations

from collections.abc import Sequence

from synth.core.config import load_config
from synth.core.data import DataSettings
from synth.core.pairs import ImageSet, PairSet
from synth.core.shell import required
from synth.formats import load_images, load_pairs


def take_group(overrides: Sequence[str], group: str) -> tuple[list[str], list[str]]:
    """Returns the `group.key=value` among `overrides` without the group's name, and the other overrides."""
    mine = [o.removeprefix(f"{group}.") for o in overrides if o.startswith(f"{group}.")]
    return mine, [o for o in overrides if not o.startswith(f"{group}.")]


def take_data(overrides: Sequence[str]) -> tuple[DataSettings, list[str]]:
    """Returns the data.* settings among `overrides`, and the other overrides."""
    mine, rest = take_group(overrides, "data")
    return load_config(DataSettings, {}, mine), rest


def load_labelled(data: DataSettings) -> PairSet:
    """Returns the labelled pairs.

    Raises:
        UserError: if they are not named, or cannot be read.
    """
    folder = required(data.labelled, "data.labelled", "data/labelled")
    return load_pairs(folder, mask_map=data.mask_map, channels=data.channels)


def load_like(folder: str | None, labelled: PairSet) -> ImageSet | None:
    """Returns the images of `folder`, read like the labelled ones; None without a folder."""
    return load_images(folder, channels=labelled.info.channels, like=labelled.info) if folder else None


def load_held_out(folder: str | None, data: DataSettings, labelled: PairSet) -> PairSet | None:
    """Returns the real pairs of `folder`, read like the labelled ones; None without a folder."""
    if not folder:
        return None
    return load_pairs(folder, mask_map=data.mask_map, channels=labelled.info.channels, like=labelled.info)


def join(labelled: PairSet, unlabelled: ImageSet | None) -> ImageSet | None:
    """Returns the images of both; None where there are no unlabelled ones."""
    if unlabelled is None:
        return None
    return ImageSet([*labelled.items, *unlabelled.items], labelled.info, where=unlabelled.where)
