"""What a set looks like: a few lines, and a grid of its pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from synth.core.checks import IGNORE, UserError
from synth.core.files import replace_file
from synth.core.pairs import DataInfo, ImageSet, Pair, PairSet
from synth.core.space import resize_image, resize_mask, to_channels
from synth.formats import load_set, read_shards
from synth.formats.shards import shard_sources
from synth.formats.survey import Options
from synth.gates import rules_of

COLOURS = np.array([[0, 0, 0], [255, 200, 0], [0, 200, 255], [255, 80, 160], [120, 255, 80], [180, 120, 255]], float)
"""Outline colours of the classes, background first; more classes repeat them."""


def what_of(found: ImageSet) -> str:
    """Returns what a set holds, in the plural."""
    return "pairs" if isinstance(found, PairSet) else "images without masks"


def summary(folder: str | Path) -> list[str]:
    """Returns a few lines: how many pairs, classes, groups, and what the gates said."""
    has_rejected = any((Path(folder) / "data").glob("rejected-*.parquet"))
    nothing = has_rejected and not shard_sources(Path(folder), Options(labelled=True), split="train")
    pairs = None if nothing else load_set(folder)
    lines = [f"{folder}: no pair passed the gates"] if pairs is None else [
        f"{folder}: {len(pairs)} {what_of(pairs)}, {pairs.info.channels} channel(s), {pairs.info.bit_depth} bit, "
        f"{len(set(pairs.groups))} groups, classes {', '.join(pairs.info.classes)}"]
    scores: dict[str, list[float]] = {}
    for item in pairs.items if pairs is not None else ():
        for name, value in (item.made.scores if item.made else {}).items():
            scores.setdefault(name, []).append(value)
    lines += [f"  {name}: median {np.median(v):.3f}, from {min(v):.3f} to {max(v):.3f}" for name, v in scores.items()]
    if has_rejected:
        rejected = read_shards(Path(folder), "rejected")
        why = Counter(rule for item in rejected.items for rule in rules_of(item.made.reason))
        lines.append(f"  {len(rejected)} rejected: " + ", ".join(f"{k} {n}" for k, n in why.most_common()))
    return lines


def view(pixels: np.ndarray, info: DataInfo) -> np.ndarray:
    """Returns pixels (C, H, W) as 8-bit RGB (H, W, 3) over the set's intensity range."""
    low, high = info.intensity_range
    grey = np.clip((pixels.astype(np.float64) - low) / (high - low), 0, 1) * 255
    return np.broadcast_to(grey.transpose(1, 2, 0), (*pixels.shape[1:], 3)).astype(np.uint8)


def outlined(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns rgb (H, W, 3) with each class of labels `mask` (H, W) outlined in its colour, ignored pixels hatched."""
    out = rgb.copy()
    inside = np.pad(mask, 1, mode="edge")
    same = (inside[1:-1, 1:-1] == inside[:-2, 1:-1]) & (mask == inside[2:, 1:-1]) & (mask == inside[1:-1, :-2]) & (
        mask == inside[1:-1, 2:])
    edge = ~same & (mask > 0) & (mask != IGNORE)
    out[edge] = COLOURS[1 + (mask[edge] - 1) % (len(COLOURS) - 1)]
    hatch = (mask == IGNORE) & (np.indices(mask.shape).sum(0) % 4 == 0)
    out[hatch] = (255, 0, 0)
    return out


def _tile(pair: Pair, info: DataInfo, side: int) -> np.ndarray:
    rgb = view(resize_image(to_channels(pair.image), side), info)
    if pair.mask is None:
        return rgb
    return np.concatenate([rgb, outlined(rgb, resize_mask(pair.mask, (side, side)))])


def save_grid(pairs: ImageSet, path: Path, *, n: int = 32, columns: int = 8, side: int = 128) -> None:
    """Writes a PNG of up to `n` pairs spread over the set, each image above itself with its mask outlined, if any.

    Raises:
        UserError: if `path` does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"out={path}", rule="it is written as PNG", repair="give a name that ends in .png")
    rows = np.linspace(0, len(pairs) - 1, min(n, len(pairs))).round().astype(int)
    tiles = [_tile(pairs[int(i)], pairs.info, side) for i in rows]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    grid = np.concatenate([np.concatenate(tiles[i:i + columns], 1) for i in range(0, len(tiles), columns)])
    replace_file(path, lambda p: Image.fromarray(grid).save(p, format="PNG"))
