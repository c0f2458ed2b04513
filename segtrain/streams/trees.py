"""Max-tree and min-tree simplification of images (DSAIF): components without a sibling are merged into their parent."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

from synth.core.checks import UserError

if TYPE_CHECKING:
    import higra

MIN_SSIM = 0.8
"""Below it a simplified image is no longer the same picture, and the image itself is taken."""

TOP = 255


@lru_cache(maxsize=8)
def _grid(size: tuple[int, int], connectivity: int) -> higra.UndirectedGraph:
    import higra  # half a second to import, and only this method's runs want it

    return (higra.get_4_adjacency_graph if connectivity == 4 else higra.get_8_adjacency_graph)(size)


def filter_max(levels: np.ndarray, *, connectivity: int = 4) -> np.ndarray:
    """Returns grey levels (H, W) uint8 without the bright components that have no sibling.

    A node of the max-tree is kept if its parent has two or more children; the root is kept; every pixel takes the level
    of its nearest kept ancestor (DSAIF). The result is nowhere brighter, and filtering it again changes nothing.

    Args:
        connectivity: of the components, 4 or 8.

    Raises:
        UserError: if `connectivity` is neither.
    """
    import higra

    if connectivity not in (4, 8):
        raise UserError(f"connectivity {connectivity}", rule="pixels have 4 or 8 neighbours", repair="take 4 or 8")
    tree, altitudes = higra.component_tree_max_tree(_grid(levels.shape, connectivity), levels)
    n_pixels, parents = tree.num_leaves(), tree.parents()
    # The tree's leaves are the pixels, not components: they count for no sibling and have no level of their own.
    n_children = np.bincount(parents[n_pixels:-1], minlength=tree.num_vertices())
    dropped = n_children[parents] < 2
    dropped[:n_pixels], dropped[-1] = True, False
    return higra.reconstruct_leaf_data(tree, altitudes, dropped).reshape(levels.shape).astype(levels.dtype)


def filter_min(levels: np.ndarray, *, connectivity: int = 4) -> np.ndarray:
    """Returns grey levels (H, W) uint8 without the dark components that have no sibling: 255 - filter_max(255 - x)."""
    return TOP - filter_max(TOP - levels, connectivity=connectivity)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the mean structural similarity, at most 1, of grey levels (H, W) in [0, 255].

    Gaussian windows of 1.5 px, mirrored borders (Wang et al. 2004, eq. 13).
    """
    a, b = a.astype(np.float64), b.astype(np.float64)

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)

    c1, c2 = (0.01 * TOP) ** 2, (0.03 * TOP) ** 2
    mean_a, mean_b = mean(a), mean(b)
    covariance = mean(a * b) - mean_a * mean_b
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    return float(((2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                  / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean())


def _to_levels(pixels: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Returns pixels as grey levels uint8, the pixel value of level 0, and the pixel values between two levels."""
    if pixels.dtype == np.uint8:
        return pixels, 0.0, 1.0
    low, high = float(pixels.min()), float(pixels.max())
    step = max(high - low, 1.0) / TOP
    return np.rint((pixels - low) / step).astype(np.uint8), low, step


def simplify(pixels: np.ndarray, *, keep: Callable[[np.ndarray], np.ndarray], min_ssim: float = MIN_SSIM) -> np.ndarray:
    """Returns pixels (C, H, W) uint8 or uint16, each channel filtered by `keep`, of the same type and range.

    16-bit images are filtered at 256 levels of their own range; pixels that the filter leaves alone keep their value to
    the last bit. An image that it would change beyond recognition (a mean SSIM below `min_ssim`: flat pictures lose
    whole objects) is returned as it is.
    """
    levels, low, step = _to_levels(pixels)
    found = np.stack([keep(channel) for channel in levels])
    if np.mean([ssim(a, b) for a, b in zip(levels, found, strict=True)]) < min_ssim:
        return pixels
    return np.where(found == levels, pixels, np.rint(low + step * found)).astype(pixels.dtype)


def tree_max(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels (C, H, W), bright components without a sibling removed."""
    return simplify(pixels, keep=filter_max)


def tree_min(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels (C, H, W), dark components without a sibling removed."""
    return simplify(pixels, keep=filter_min)


TREES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"tree_max": tree_max, "tree_min": tree_min}
"""Forms of this module by the name that method files use."""
