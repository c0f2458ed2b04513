"""What lies round the picture itself: endoscope frames, black corners, page margins, the air round a body."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from synth.layouts.warp import foreground_of

LEVELS = 3
"""Constant levels looked for: black corners and a grey panel may stand in one image."""
ROOF = 0.7
"""A frame that covers more of the image than this leaves nothing to paint, so it is none."""


def _touching_border(region: np.ndarray) -> np.ndarray:
    """Returns the parts of region (H, W) bool that are connected with the image border."""
    parts, _ = ndimage.label(region, np.ones((3, 3)))
    rim = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return np.isin(parts, rim[rim > 0])


def _levels(rim: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Returns the commonest colours (C,) of border pixels rim (N, C) in [0, 1], commonest first."""
    levels, rest = [], rim
    while len(levels) < LEVELS and len(rest) >= 0.02 * len(rim):
        bins, n = np.unique(np.floor(rest / tolerance), axis=0, return_counts=True)
        centre = (bins[n.argmax()] + 0.5) * tolerance
        for _ in range(2):  # a level that straddles two bins is drawn to its middle
            centre = np.median(rest[(np.abs(rest - centre) <= tolerance).all(1)], axis=0)
        levels.append(centre)
        rest = rest[~(np.abs(rest - centre) <= tolerance).all(1)]
    return levels


def detect_frame(pixels: np.ndarray, *, tolerance: float = 0.06, min_share: float = 0.02) -> np.ndarray:
    """Returns the near-constant area that is connected with the border of pixels (C, H, W), as (H, W) bool.

    An area counts as constant if halving the tolerance keeps three quarters of it: a frame is a plateau, whereas of
    corners that darken smoothly only a half or a quarter is left. Small islands (burned-in text) belong to it.

    Args:
        tolerance: largest deviation from the area's level, share of the image's own intensity range.
        min_share: share of the image below which it is no frame.
    """
    shape, nothing = pixels.shape[-2:], np.zeros(pixels.shape[-2:], bool)
    values = np.stack([ndimage.median_filter(c, 3) for c in pixels.astype(np.float64)])  # JPEG and sensor noise
    low, high = values.min(), values.max()
    if high <= low:
        return nothing
    values = (values - low) / (high - low)
    rim = np.concatenate([values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1]], 1).T
    frame = nothing.copy()
    for level in _levels(rim, tolerance):
        distance = np.abs(values - level[:, None, None]).max(0)
        area, core = _touching_border(distance <= tolerance), _touching_border(distance <= tolerance / 2)
        if core.sum() >= 0.75 * area.sum():
            frame |= area
    radius = max(1, round(0.015 * min(shape)))
    disc = np.hypot(*np.ogrid[-radius:radius + 1, -radius:radius + 1]) <= radius
    padded = np.pad(frame, 2 * radius, mode="edge")  # opening must not eat the frame at the image border
    frame = _touching_border(ndimage.binary_opening(padded, disc)[2 * radius:-2 * radius, 2 * radius:-2 * radius])
    islands, n = ndimage.label(~frame)
    small = [i for i in range(1, n + 1) if (islands == i).sum() < 0.01 * frame.size]
    frame |= np.isin(islands, small)
    return frame if frame.mean() >= min_share else nothing


def keep_in_of(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the frame of image (C, H, W) without the foreground of mask (H, W), as (H, W) bool.

    Nothing where the frame is most of the image, or most of what lies next to the foreground: the dark ground that
    nuclei shine on is their surroundings, and must be painted.
    """
    frame, foreground = detect_frame(image) & ~foreground_of(mask), foreground_of(mask)
    if not frame.any():
        return frame
    reach = max(2, round(0.04 * min(mask.shape)))
    ring = (ndimage.distance_transform_edt(~foreground) <= reach) & ~foreground if foreground.any() else foreground
    surroundings = frame.mean() > ROOF or (ring.any() and frame[ring].mean() > 0.5)
    return np.zeros_like(frame) if surroundings else frame
