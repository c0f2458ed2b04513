"""What lies round a picture: endoscope frames, black corners, page margins, the air round a body. The one detector."""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from scipy import ndimage

from synth.core.device import rows_at_a_time

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
WITHIN_IMAGES = np.stack([np.zeros((3, 3)), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3))])
"""Pixels of a batch (N, H, W) that touch: by sides, and none of another image."""


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
    time on a coarse grid, whose darkest and brightest pixel stand for the image's range. To be one, it must cover some
    but not most of the image, and leave a compact view.
    """
    step = max(1, min(images.shape[-2:]) // COARSE)
    some = _brightest(images[..., ::step, ::step]).contiguous().cpu()  # so little is looked at faster there
    low = some.amin((1, 2))
    reach = TOLERANCE * (some.amax((1, 2)) - low)
    corners = torch.cat([some[:, y, x].flatten(1) for y, x in _corners(some.shape[1:])], 1)
    # nan without a dark corner, which no pixel is below
    level = torch.where(corners <= (low + 2 * reach)[:, None], corners, torch.nan).nanmedian(1).values
    rows = ((reach > 0) & ~level.isnan()).nonzero()[:, 0]
    frame = grown_from_corners(voted(some[rows] <= (level + reach)[rows, None, None]))
    found = _leaves_a_view(frame)
    rows, frame = rows[found], frame[found]
    core = grown_from_corners(voted(some[rows] <= (level + 0.5 * reach)[rows, None, None]))
    found = is_plateau(core, frame)
    if not found.any():
        return None
    coarse = torch.zeros_like(some, dtype=torch.bool)
    coarse[rows[found]] = frame[found]
    return _full_size(images, coarse, level + reach, step)[:, None]


def _full_size(images: torch.Tensor, coarse: torch.Tensor, bound: torch.Tensor, step: int) -> torch.Tensor:
    # What is no frame (B, H, W): frames `coarse` were found on every `step`-th pixel, and are no brighter than `bound`.
    dark, n = torch.empty_like(images[:, 0], dtype=torch.bool), rows_at_a_time(images)
    for some, most, out in zip(*(x.split(n) for x in (images, bound.to(images.device), dark)), strict=True):
        torch.le(_brightest(some), most[:, None, None], out=out)
    # Bytes of all images at once: calls on fewer take longer to make than to compute.
    return ~(_refined(coarse.to(images.device), step, images.shape[-2:]) & voted(dark))


def _brightest(images: torch.Tensor) -> torch.Tensor:
    # The largest channel (B, H, W); torch's own amax takes several times as long over so few.
    return reduce(torch.maximum, images.unbind(1))


def _refined(coarse: torch.Tensor, step: int, shape: torch.Size) -> torch.Tensor:
    # Areas (N, h, w) found on every `step`-th pixel, and a cell round them, at full size (N, H, W).
    if step == 1:
        return coarse
    round_about = _votes(coarse) > 0
    return round_about.repeat_interleave(step, 2).repeat_interleave(step, 1)[:, :shape[0], :shape[1]]


def _leaves_a_view(frame: torch.Tensor) -> torch.Tensor:
    view = ~frame.numpy()  # torch takes long to reduce bools
    left = view.mean((1, 2))
    box = _extent(view.any(2)) * _extent(view.any(1))
    return torch.from_numpy((1 - left >= MIN_SHARE) & (1 - left <= ROOF) & (view.sum((1, 2)) >= MIN_FILL * box))


def _extent(used: np.ndarray) -> np.ndarray:
    return used.shape[1] - used.argmax(1) - used[:, ::-1].argmax(1)


def voted(region: torch.Tensor) -> torch.Tensor:
    """Returns region (N, H, W) bool as the majority of 3 x 3 pixels has it: what a median filter of the image does."""
    return _votes(region) > 4


def _votes(region: torch.Tensor) -> torch.Tensor:
    # How many of 3 x 3 pixels have it, (N, H, W) uint8; borders are continued.
    votes = region.view(torch.uint8) if region.is_contiguous() else region.to(torch.uint8)
    for axis in (1, 2):  # sums of bytes, far cheaper than means of floats
        n, sums = votes.shape[axis], votes.clone()
        for to, of, length in ((1, 0, n - 1), (0, 1, n - 1), (0, 0, 1), (n - 1, n - 1, 1)):
            sums.narrow(axis, to, length).add_(votes.narrow(axis, of, length))
        votes = sums
    return votes


def is_plateau(core: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Returns whether what is within half the tolerance, `core` (N, H, W), is most of `area` (N, H, W), (N,) bool."""
    return core.sum((1, 2)) >= PLATEAU * area.sum((1, 2))


def _corners(shape: torch.Size) -> list[tuple[slice, slice]]:
    tall, broad = (max(1, round(CORNER * side)) for side in shape)
    return [(rows, columns) for rows in (slice(None, tall), slice(shape[0] - tall, None))
            for columns in (slice(None, broad), slice(shape[1] - broad, None))]


def grown_from_corners(region: torch.Tensor) -> torch.Tensor:
    """Returns the parts of region (N, H, W) bool that are connected, by sides of pixels, with a corner of the image."""
    parts, n = ndimage.label(region.cpu().numpy(), WITHIN_IMAGES)
    seen = np.zeros(n + 1, bool)
    for rows, columns in _corners(region.shape[1:]):
        seen[parts[:, rows, columns]] = True
    seen[0] = False
    return torch.from_numpy(seen[parts]).to(region.device)
