"""What the denoiser trains on: cached views of every image, and what it is told about each of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from synth.core.batches import rows_of
from synth.core.checks import IGNORE
from synth.core.loop import Batch, Batches
from synth.core.pairs import Arrays
from synth.core.rng import choice, derive_seed, sample_rng, uniform
from synth.diffusion.settings import DenoiserSettings


def view_of(images: torch.Tensor, labels: torch.Tensor, ids: Sequence[str], *, view: int,
            settings: DenoiserSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns view number `view` of unit images (N, C, S, S) and labels (N, S, S): 0 = as they are, else a random zoom.

    The crop is perhaps mirrored; labels are taken nearest, and where the frame moves in, nothing is known (255).
    """
    if view == 0:
        return images, labels
    moved, marked = torch.empty_like(images), torch.empty_like(labels)
    for i, name in enumerate(ids):
        rng = sample_rng(view, "view", name)
        s = 1 / uniform(rng, 1, settings.zoom)
        x, y = uniform(rng, s - 1, 1 - s), uniform(rng, s - 1, 1 - s)
        sign = -1.0 if settings.flip and uniform(rng, 0, 1) < 0.5 else 1.0
        theta = torch.tensor([[[sign * s, 0, x], [0, s, y]]])
        grid = F.affine_grid(theta, [1, *images.shape[1:]], align_corners=False)
        moved[i] = F.grid_sample(images[i:i + 1], grid, padding_mode="reflection", align_corners=False)[0]
        shifted = labels[i].float()[None, None] - IGNORE  # padding with zeros is then padding with 255
        shifted = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        marked[i] = (shifted[0, 0] + IGNORE).round().to(labels.dtype)
    return moved, marked


FOREGROUND_CROPS = 0.5
"""Share of the crops of an image with foreground that are laid over some of it: else most would show none."""


def draw_crop(rng: torch.Generator, mask: np.ndarray, *, size: int) -> tuple[slice, slice]:
    """Returns rows and columns of a random crop of `size` px from an image with labels `mask` (H, W)."""
    low, high = [0, 0], [side - size for side in mask.shape]
    there = np.flatnonzero((mask > 0) & (mask != IGNORE))
    if len(there) and uniform(rng, 0, 1) < FOREGROUND_CROPS:
        for axis, at in enumerate(np.unravel_index(there[choice(rng, len(there))], mask.shape)):
            low[axis], high[axis] = max(low[axis], int(at) - size + 1), min(high[axis], int(at))
    top, left = (a + choice(rng, b - a + 1) for a, b in zip(low, high, strict=True))
    return slice(top, top + size), slice(left, left + size)


def cut_crops(arrays: Arrays, *, size: int, settings: DenoiserSettings) -> list[Arrays]:
    """Returns `n_views` sets of random crops of `size` px of images at native size, labels cropped alike.

    Images are read one by one, and only the crops stay. Without masks, all labels are 255 (unknown). Each crop is a
    function of its view, the image and its id, and is mirrored half of the time if `settings.flip`.
    """
    images = [np.empty((len(arrays), arrays.info.channels, size, size), arrays.info.dtype)
              for _ in range(settings.n_views)]
    masks = [np.full((len(arrays), size, size), IGNORE, np.uint8) for _ in images]
    for row, name in enumerate(arrays.ids):
        image = arrays.images[row]
        mask = np.full(image.shape[-2:], IGNORE, np.uint8) if arrays.masks is None else arrays.masks[row]
        for view in range(settings.n_views):
            rng = sample_rng(view, "crop", name)
            box = draw_crop(rng, mask, size=size)
            step = -1 if settings.flip and uniform(rng, 0, 1) < 0.5 else 1
            images[view][row], masks[view][row] = image[:, *box][..., ::step], mask[box][:, ::step]
    return [dataclasses.replace(arrays, images=i, masks=m) for i, m in zip(images, masks, strict=True)]


def random_blob(side: int, *, area: float, rng: torch.Generator) -> torch.Tensor:
    """Returns one star-shaped region of about `area` of the frame at a random place, (side, side) bool.

    Its radius over the angle is 1 + a few random harmonics: roundish like organs and lesions, never twice the same.
    """
    radius = math.sqrt(area / math.pi)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, side),) * 2, indexing="ij")
    dx, dy = x - uniform(rng, 0, 1), y - uniform(rng, 0, 1)
    stretch = math.exp(uniform(rng, -0.5, 0.5))
    angle = torch.atan2(dy / stretch, dx * stretch)
    outline = torch.ones_like(angle)
    for k in (1, 2, 3, 4):
        outline = outline + uniform(rng, 0, 0.5 / k) * torch.cos(k * angle + uniform(rng, 0, 2 * math.pi))
    return (dx * stretch).square() + (dy / stretch).square() < (radius * outline).square()


def draw_keep(coverage: torch.Tensor, *, rng: torch.Generator, settings: DenoiserSettings) -> torch.Tensor:
    """Returns which cells the network is told, (h, w) bool: nothing, a blob, all but a blob, or the labelled object.

    The kinds are what the one network is later asked for: drawing from nothing, painting surroundings, repainting or
    inserting an object. `coverage` is the labels' (K, h, w).
    """
    side = coverage.shape[-1]
    if uniform(rng, 0, 1) < settings.keep_dropout:
        return torch.zeros(side, side, dtype=torch.bool)
    inverse = uniform(rng, 0, 1) < settings.repaint_share
    foreground = coverage[1:].sum(0) > 0
    if foreground.any() and uniform(rng, 0, 1) < 0.5:
        grow = 2 * int(uniform(rng, 1, 4)) + 1
        region = F.max_pool2d(foreground[None, None].float(), grow, 1, grow // 2)[0, 0] > 0
    else:
        region = random_blob(side, area=math.exp(uniform(rng, math.log(0.01), math.log(0.4))), rng=rng)
        if uniform(rng, 0, 1) < 0.3:
            region = region | random_blob(side, area=math.exp(uniform(rng, math.log(0.01), math.log(0.2))), rng=rng)
    return ~region if inverse else region


@dataclass(frozen=True)
class CachedView:
    """One view of every training image: latent mean and log-variance (N, c, h, w), label coverage (N, K, h, w)."""

    mean: torch.Tensor
    logvar: torch.Tensor
    coverage: torch.Tensor


def denoiser_batches(views: Sequence[CachedView], labelled: torch.Tensor, *, batch_size: int, seed: int,
                     settings: DenoiserSettings) -> Batches:
    """Returns batches of standardised latent statistics with what the network is told about each.

    Args:
        labelled: rows of the images that have labels, shape (L,). `settings.labelled_share` of every batch is drawn
            from them where there are any, the rest from all images alike.
    """
    n = views[0].mean.shape[0]

    def batches(step: int, rank: int, n_ranks: int) -> Batch:
        rows = rows_of(step, rank, n_ranks, n=n, batch_size=batch_size, seed=seed)
        rng = sample_rng(seed, "told", step, rank)
        pick = np.random.default_rng(derive_seed(seed, "view", step, rank))
        if len(labelled):
            n_labelled = int(settings.labelled_share * len(rows) + uniform(rng, 0, 1))
            # Anywhere in the batch: noise levels rise along it, and labels say most where the noise is strong.
            places = np.random.default_rng(derive_seed(seed, "labelled", step, rank)).permutation(len(rows))
            drawn = labelled[pick.integers(len(labelled), size=n_labelled)].tolist()
            for place, row in zip(places[:n_labelled], drawn, strict=True):
                rows[place] = row
        view = pick.integers(len(views), size=len(rows))
        chosen = [views[v] for v in view]
        coverage = torch.stack([v.coverage[r] for v, r in zip(chosen, rows, strict=True)])
        keep = torch.stack([draw_keep(c, rng=rng, settings=settings) for c in coverage])
        dropped = torch.tensor([uniform(rng, 0, 1) < settings.label_dropout for _ in rows])
        return {"mean": torch.stack([v.mean[r] for v, r in zip(chosen, rows, strict=True)]),
                "logvar": torch.stack([v.logvar[r] for v, r in zip(chosen, rows, strict=True)]),
                "keep": keep[:, None].float(),
                "coverage": torch.where(dropped[:, None, None, None], 0.0, coverage)}

    return batches
