"""Which part of a frame a pair keeps: all but what lies under or around its foreground."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from synth.core.frame import ROOF, detect_frame
from synth.layouts.warp import foreground_of


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
