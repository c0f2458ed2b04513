"""The spaces an image or mask can be in, and the only ways between them.

pixels: uint8 or uint16 as on disk, (H, W) or (H, W, 3). unit: float32 in [-1, 1], (B, C, H, W).
labels: int64 class indices, (B, H, W), 255 = ignore. onehot: float32, (B, K, H, W).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from synth.core.checks import IGNORE


def to_channels(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels (H, W) or (H, W, C) as (C, H, W)."""
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def from_channels(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels (C, H, W) as (H, W) for one channel, else (H, W, C): the layout on disk."""
    return pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def pixels_to_unit(pixels: np.ndarray, intensity_range: tuple[float, float]) -> torch.Tensor:
    """Returns pixels (B, C, H, W) as unit (B, C, H, W): `intensity_range` becomes [-1, 1], beyond it is clamped."""
    low, high = intensity_range
    values = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    return ((values - low) * (2 / (high - low)) - 1).clamp_(-1, 1)


def unit_to_pixels(unit: torch.Tensor, intensity_range: tuple[float, float], dtype: np.dtype) -> np.ndarray:
    """Returns unit (B, C, H, W) as pixels (B, C, H, W) of `dtype`, rounded to the nearest level."""
    low, high = intensity_range
    values = (unit.detach().cpu().float().clamp(-1, 1) + 1) * ((high - low) / 2) + low
    top = np.iinfo(dtype).max
    return values.round_().clamp_(0, top).numpy().astype(dtype)


def labels_to_onehot(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Returns labels (B, H, W) as onehot (B, K, H, W) float32; ignored pixels are zero in every class."""
    valid = labels != IGNORE
    onehot = F.one_hot(labels.masked_fill(~valid, 0), n_classes).movedim(-1, 1).float()
    return onehot * valid[:, None]


def labels_to_keep(labels: torch.Tensor) -> torch.Tensor:
    """Returns the keep mask (B, H, W) bool of labels (B, H, W): foreground, that is every class > 0 but ignore."""
    return (labels > 0) & (labels != IGNORE)


def resize_image(pixels: np.ndarray, size: int) -> np.ndarray:
    """Returns pixels (C, H, W) as (C, size, size): antialiased bilinear, rounded, same dtype."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    values = torch.from_numpy(pixels.astype(np.float32))[None]
    values = F.interpolate(values, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return values.round_().clamp_(0, np.iinfo(pixels.dtype).max).numpy().astype(pixels.dtype)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns labels (H, W) uint8 at `size` = (height, width), nearest neighbour."""
    if mask.shape == tuple(size):
        return mask
    values = torch.from_numpy(mask.astype(np.float32))[None, None]
    return F.interpolate(values, tuple(size), mode="nearest-exact")[0, 0].numpy().astype(np.uint8)


def top_class(scores: torch.Tensor) -> torch.Tensor:
    """Returns the class of the highest of scores (B, K, ...), (B, ...) int64; the first of equal ones."""
    return scores.max(dim=1).indices  # argmax over a dimension that is not the last is 16 times slower on a CPU


def enlarge(pixels: np.ndarray, mask: np.ndarray | None, *, least: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns pixels (C, H, W) and labels (H, W) with no side below `least` px: as they are, or enlarged evenly."""
    scale = least / min(pixels.shape[-2:])
    if scale <= 1:
        return pixels, mask
    shape = tuple(max(least, round(scale * side)) for side in pixels.shape[-2:])
    values = torch.from_numpy(pixels.astype(np.float32))[None]
    values = F.interpolate(values, shape, mode="bilinear", align_corners=False)[0].round_().numpy()
    return values.astype(pixels.dtype), None if mask is None else resize_mask(mask, shape)
