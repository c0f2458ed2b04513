"""What lies round a picture: endoscope frames, black corners, page margins, the air round a body. The one detector."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

TOLERANCE = 0.06
"""How far a pixel of a frame may be from the frame's level, share of the image's own intensity range."""
PLATEAU = 0.75
"""Share of a frame that is within half the tolerance: its edge is steep, corners that darken smoothly have none."""
CORNER = 0.05
"""A frame lies round a picture, so each part of it begins within this share of the side from a corner of the image.
Dark that touches a side elsewhere, such as what is below a brain in a tight field of view, belongs to the picture."""
MIN_SHARE = 0.02
"""Share of the image below which an area is no frame."""
ROOF = 0.7
"""A frame that covers more of the image than this leaves no picture, so it is none."""
LEVELS = 3
"""Constant levels looked for: black corners and a grey panel may stand in one image."""
ISLAND = 0.01
"""Share of the image below which what a frame encloses (burned-in text) belongs to it."""
MIN_FILL = 0.6
"""Share of its bounding box that a field of view fills (a disc fills 0.79); scattered objects fill less."""
COARSE = 64
"""Pixels of the shorter side, about, on which `field_of_view` looks for frames."""


def detect_frame(pixels: np.ndarray) -> np.ndarray:
    """Returns the near-constant areas round the corners of pixels (C, H, W), as (H, W) bool, whatever their level.

    An area is constant if halving the tolerance leaves most of it: a frame is a plateau, corners that darken smoothly
    are none. Small islands (burned-in text) belong to it.
    """
    nothing, values = np.zeros(pixels.shape[-2:], bool), pixels.astype(np.float64)
    values = np.stack([ndimage.median_filter(c, 3) for c in values])  # compression and sensor noise
    low, high = values.min(), values.max()
    if high <= low:
        return nothing
    values = (values - low) / (high - low)
    rim, frame = np.concatenate([values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1]], 1).T, nothing.copy()
    for level in _levels(rim):
        far = torch.from_numpy(np.abs(values - level[:, None, None]).max(0))[None]
        core, area = (grown_from_corners(far <= k * TOLERANCE) for k in (0.5, 1))
        if is_plateau(core, area):
            frame |= area[0].numpy()
    frame = _with_islands(_opened(frame))
    return frame if frame.mean() >= MIN_SHARE else nothing


def _levels(rim: np.ndarray) -> list[np.ndarray]:
    """Returns the commonest colours (C,) of border pixels rim (N, C) in [0, 1], commonest first."""
    levels, rest = [], rim
    while len(levels) < LEVELS and len(rest) >= 0.02 * len(rim):
        bins, n = np.unique(np.floor(rest / TOLERANCE), axis=0, return_counts=True)
        centre = (bins[n.argmax()] + 0.5) * TOLERANCE
        for _ in range(2):  # a level that straddles two bins is drawn to its middle
            centre = np.median(rest[(np.abs(rest - centre) <= TOLERANCE).all(1)], axis=0)
        levels.append(centre)
        rest = rest[~(np.abs(rest - centre) <= TOLERANCE).all(1)]
    return levels


def _opened(frame: np.ndarray) -> np.ndarray:
    # Without what is thin: bridges of dark tissue between a frame and dark parts of the picture.
    radius = max(1, round(0.015 * min(frame.shape)))
    disc = np.hypot(*np.ogrid[-radius:radius + 1, -radius:radius + 1]) <= radius
    padded = np.pad(frame, 2 * radius, mode="edge")  # opening must not eat the frame at the image border
    opened = ndimage.binary_opening(padded, disc)[2 * radius:-2 * radius, 2 * radius:-2 * radius]
    return grown_from_corners(torch.from_numpy(np.ascontiguousarray(opened))[None])[0].numpy()


def _with_islands(frame: np.ndarray) -> np.ndarray:
    islands, n = ndimage.label(~frame)
    if not n:
        return frame
    small = np.flatnonzero(np.bincount(islands.ravel())[1:] < ISLAND * frame.size) + 1
    return frame | np.isin(islands, small)


def field_of_view(images: torch.Tensor) -> torch.Tensor | None:
    """Returns which pixels of unit images (B, C, H, W) belong to the picture, (B, 1, H, W) bool; None if all do.

    The frames of `detect_frame` that are near the darkest value of their image in every channel, found for a batch at a
    time on a coarse grid. To be one, it must cover some but not most of the image, and leave a compact view.
    """
    bright = images.amax(1)
    step = max(1, min(bright.shape[-2:]) // COARSE)
    some = bright[:, ::step, ::step]
    low = bright.amin((1, 2))
    reach = TOLERANCE * (bright.amax((1, 2)) - low)
    corners = torch.where(_near_corners(some <= (low + 2 * reach)[:, None, None]), some, torch.nan).flatten(1)
    level = corners.nanmedian(1).values  # nan without a dark corner, which no pixel is below
    core, frame = (voted(some <= (level + k * reach)[:, None, None]) for k in (0.5, 1))
    rows = ((reach > 0) & frame.any(2).any(1)).nonzero()[:, 0]
    if not len(rows):
        return None
    core, frame = grown_from_corners(core[rows]), grown_from_corners(frame[rows])
    found = is_plateau(core, frame) & _leaves_a_view(frame)
    rows, frame = rows[found], frame[found]
    if not len(rows):
        return None
    inside = torch.ones_like(bright, dtype=torch.bool)
    dark = voted(bright[rows] <= (level + reach)[rows, None, None])
    inside[rows] = ~(_refined(frame, step, bright.shape[-2:]) & dark)
    return inside[:, None]


def _refined(coarse: torch.Tensor, step: int, shape: torch.Size) -> torch.Tensor:
    # Areas (N, h, w) found on every `step`-th pixel, and a cell round them, at full size (N, H, W).
    if step == 1:
        return coarse
    round_about = F.max_pool2d(coarse[:, None].float(), 3, 1, 1)[:, 0] > 0
    return round_about.repeat_interleave(step, 1).repeat_interleave(step, 2)[:, :shape[0], :shape[1]]


def _leaves_a_view(frame: torch.Tensor) -> torch.Tensor:
    share, view = frame.float().mean((1, 2)), ~frame
    box = _extent(view.any(2)) * _extent(view.any(1))
    return (share >= MIN_SHARE) & (share <= ROOF) & (view.sum((1, 2)) >= MIN_FILL * box)


def _extent(used: torch.Tensor) -> torch.Tensor:
    n, used = used.shape[1], used.to(torch.uint8)
    return n - used.argmax(1) - used.flip(1).argmax(1)


def voted(region: torch.Tensor) -> torch.Tensor:
    """Returns region (N, H, W) bool as the majority of 3 x 3 pixels has it: what a median filter of the image does."""
    votes = region.to(torch.uint8)
    for axis in (1, 2):  # sums of bytes, far cheaper than means of floats
        n = votes.shape[axis]
        first, last = votes.narrow(axis, 0, 1), votes.narrow(axis, n - 1, 1)
        before, after = votes.narrow(axis, 0, n - 1), votes.narrow(axis, 1, n - 1)
        votes = votes + torch.cat([first, before], axis) + torch.cat([after, last], axis)
    return votes > 4


def is_plateau(core: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Returns whether what is within half the tolerance, `core` (N, H, W), is most of `area` (N, H, W), (N,) bool."""
    return core.sum((1, 2)) >= PLATEAU * area.sum((1, 2))


def _near_corners(region: torch.Tensor) -> torch.Tensor:
    height, width = region.shape[-2:]
    tall, broad = (max(1, round(CORNER * side)) for side in (height, width))
    corners = torch.zeros_like(region)
    for rows in (slice(None, tall), slice(height - tall, None)):
        for columns in (slice(None, broad), slice(width - broad, None)):
            corners[:, rows, columns] = region[:, rows, columns]
    return corners


def grown_from_corners(region: torch.Tensor) -> torch.Tensor:
    """Returns the parts of region (N, H, W) bool that are connected, by sides of pixels, with a corner of the image."""
    seen = _near_corners(region)
    n = -1
    while (now := int(seen.sum())) != n:  # a few sweeps: frames have few bends
        n = now
        for axis in (1, 2):
            seen = _swept(region, seen, axis) | _swept(region.flip(axis), seen.flip(axis), axis).flip(axis)
    return seen


def _swept(region: torch.Tensor, seen: torch.Tensor, axis: int) -> torch.Tensor:
    # All of a run of `region` along an axis that comes after what is `seen` of it.
    shape = [1] * region.ndim
    shape[axis] = -1
    place = torch.arange(1, region.shape[axis] + 1, device=region.device, dtype=torch.int32).view(shape)
    nothing = torch.zeros((), device=region.device, dtype=torch.int32)
    begun, ended = torch.where(seen, place, nothing), torch.where(region, nothing, place)
    return region & (begun.cummax(axis).values > ended.cummax(axis).values)
