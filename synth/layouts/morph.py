"""Other shapes of the same anatomy: each class grown or shrunk, the outline bent. Only where no pixel is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from synth.core.checks import IGNORE
from synth.core.rng import uniform
from synth.layouts.rules import Rules, contacts, thickness
from synth.layouts.settings import LayoutSettings

NODES = 6
"""Nodes a side of the coarse grid of outline offsets; the outer ones lie on the image's border."""


@dataclass(frozen=True)
class Morph:
    """A change of shape.

    Attributes:
        grow_px: of classes 1, 2, ...: by how much each one's outline moves outwards, px.
        bend_px: NODES x NODES offsets, row by row, by which the outline of all foreground moves outwards, px, smooth
            between the nodes; empty = none.
    """

    grow_px: tuple[float, ...]
    bend_px: tuple[float, ...] = ()


def draw_morph(rng: torch.Generator, settings: LayoutSettings, *, n_classes: int) -> Morph:
    """Returns a random change of shape within `settings`."""
    grow = tuple(round(uniform(rng, -settings.grow_px, settings.grow_px), 3) for _ in range(n_classes - 1))
    offsets = torch.randn(NODES * NODES, generator=rng, dtype=torch.float64).clamp_(-2, 2) * settings.bend_px
    return Morph(grow, tuple(round(v, 3) for v in offsets.tolist()) if settings.bend_px else ())


def signed_distance(region: np.ndarray) -> np.ndarray:
    """Returns the distance to the outline of region (H, W) bool, px: below 0 inside, above 0 outside, never 0.

    The outline runs between pixels; the image border is none.
    """
    if not region.any():
        return np.full(region.shape, np.inf)
    if region.all():
        return np.full(region.shape, -np.inf)
    outside, inside = ndimage.distance_transform_edt(~region), ndimage.distance_transform_edt(region)
    return np.where(region, 0.5 - inside, outside - 0.5)


def bounded(morph: Morph, labels: np.ndarray, rules: Rules) -> Morph:
    """Returns `morph` with no core of labels (H, W) growing through the wall that it lies in.

    A wall t px thick that grows by b is, around a core that grows by a, t - (a - b) / 2 + b px thick where b < 0, and
    the core meets what lies beyond if a - b > t; a neighbour that grows by c takes (c - b) / 2 from without. Nor does
    a core shrink so far that a hole opens between them, a >= -2 t - b. Walls are uneven and pixels coarse: where this
    is not enough, `Rules.broken` finds it, and the layout is drawn again.
    """
    grow, there = list(morph.grow_px), set(map(int, np.unique(labels)))
    touch = contacts(labels) if rules.inside else None
    for a, b in rules.inside:
        if {a, b} <= there and np.isfinite(thick := thickness(labels, a, b)):
            spare = max(thick - 1.5, 0.0)
            wall = max(grow[b - 1], -spare)
            core = min(grow[a - 1], wall + spare, 3 * wall + 2 * spare if wall < 0 else np.inf)
            core = max(core, -2 * spare - wall)
            grow[a - 1], grow[b - 1] = round(core, 3), round(wall, 3)
            for c in there - {0, a, b, IGNORE}:  # beside the wall, it must not eat through it from without
                if touch[b, c]:
                    grow[c - 1] = min(grow[c - 1], round(wall + spare, 3))
    return replace(morph, grow_px=tuple(grow))


def apply_morph(labels: np.ndarray, morph: Morph) -> np.ndarray:
    """Returns labels (H, W) uint8 with every class grown by its own amount and the whole outline bent.

    A pixel belongs to the class whose grown outline it lies deepest in, and is foreground if it lies within that
    class's growth of the old foreground: between neighbours no gap opens. Ignored pixels stay as they are.
    """
    classes = np.array([k for k in np.unique(labels) if k not in (0, IGNORE)], np.uint8)
    if not len(classes) or not (morph.bend_px or any(morph.grow_px)):
        return labels
    growth = np.array((0.0, *morph.grow_px))
    levels = np.stack([signed_distance(labels == k) - growth[k] for k in classes])
    nearest = classes[levels.argmin(0)]
    depth = signed_distance((labels > 0) & (labels != IGNORE)) - growth[nearest]
    moved = np.where(depth <= _bend(morph, labels.shape), nearest, 0)
    return np.where(labels == IGNORE, IGNORE, moved).astype(np.uint8)


def _bend(morph: Morph, shape: tuple[int, int]) -> np.ndarray | float:
    if not morph.bend_px:
        return 0.0
    nodes = torch.tensor(morph.bend_px, dtype=torch.float64).view(1, 1, NODES, NODES)
    return F.interpolate(nodes, shape, mode="bicubic", align_corners=True)[0, 0].numpy()
