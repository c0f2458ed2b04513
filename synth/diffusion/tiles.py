"""Canvases larger than the network: overlapping tiles whose estimates are averaged at every evaluation.

MultiDiffusion (Bar-Tal et al. 2023, eq. 5): the estimate of a cell is the weighted mean of the estimates of all tiles
that cover it, so neighbouring tiles agree at every noise level and no seam is left where they meet.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from diffusers import UNet2DModel

from synth.core.checks import UserError
from synth.diffusion.denoiser import Told, guided
from synth.diffusion.regions import keep_to_latent
from synth.diffusion.samplers import Denoise
from synth.generator import Generator

log = logging.getLogger(__name__)

Box = tuple[slice, slice]
"""Rows and columns."""


def check_canvas(generator: Generator, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int]) -> None:
    """Returns nothing; raises if `generator` cannot paint image (B, C, H, W) with mask (B, H, W) at any size.

    Raises:
        UserError: naming what it got and what it takes.
    """
    b, c, size, shape = len(seeds), generator.channels, generator.size, tuple(image.shape[-2:])
    if image.ndim != 4 or tuple(image.shape) != (b, c, *shape) or tuple(mask.shape) != (b, *shape) or min(shape) < size:
        raise UserError(f"image {tuple(image.shape)}, mask {tuple(mask.shape)}, {b} seed(s)",
                        rule=f"this generator takes images (B, {c}, H, W) of at least {size} px a side, masks "
                        "(B, H, W) and B seeds", repair=f"enlarge to {size} px and give one seed per image")


def pad_to_multiple(values: torch.Tensor, factor: int) -> torch.Tensor:
    """Returns values (B, H, W) or (B, C, H, W), of any type, mirrored below and right up to multiples of `factor`."""
    for axis in (-2, -1):
        n = values.shape[axis]
        turn = max(1, 2 * (n - 1))
        index = torch.arange(math.ceil(n / factor) * factor, device=values.device) % turn
        if len(index) > n:
            values = values.index_select(axis, torch.where(index < n, index, turn - index))
    return values


@dataclass(frozen=True)
class Canvas:
    """What is painted: unit images (B, C, H, W), and how they look where they are kept; keep and keep_in (B, H, W)
    bool, with and without a margin; labels (B, H, W), or None."""

    image: torch.Tensor
    shown: torch.Tensor
    keep: torch.Tensor
    keep_in: torch.Tensor
    labels: torch.Tensor | None

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Canvas:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(v) for name, v in values.items() if v is not None})

    def row(self, i: int) -> Canvas:
        """Returns row i as a canvas of its own."""
        return self._each(lambda v: v[i:i + 1])

    def padded(self, factor: int) -> Canvas:
        """Returns the canvas mirrored up to multiples of `factor` px."""
        return self._each(lambda v: pad_to_multiple(v, factor))

    def cut(self, box: Box) -> Canvas:
        """Returns the part of the canvas in `box`."""
        return self._each(lambda v: v[(..., *box)])


def _span(there: torch.Tensor, *, least: int, context: int) -> tuple[int, int]:
    """Returns where `there` (n,) bool is True, from and to, with `context` about it and at least `least` long."""
    hits, n = there.nonzero(), len(there)
    low, high = int(hits.min()) - context, int(hits.max()) + 1 + context
    missing = max(0, least - (high - low))
    low, high = low - missing // 2, high + missing - missing // 2
    shift = max(0, -low) - max(0, high - n)  # into the canvas, where it is cut at both ends only if it must be
    return max(0, low + shift), min(n, high + shift)


def paint_box(free: torch.Tensor, *, tile_px: int, factor: int) -> Box | None:
    """Returns the part of a canvas that painting its pixels `free` (H, W) bool needs, in px; None without any.

    It is the cells to be painted with a quarter of a tile of their surroundings, at least one tile a side.

    Args:
        tile_px: side of the network's images. factor: pixels per cell; both sides of `free` are multiples of it.
    """
    cells = keep_to_latent(free[None], factor=factor)[0, 0]
    if not cells.any():
        return None
    tile = tile_px // factor
    spans = [_span(cells.any(axis), least=tile, context=tile // 4) for axis in (1, 0)]
    rows, columns = (slice(factor * low, factor * high) for low, high in spans)
    return rows, columns


def paint_apart(canvas: Canvas, seeds: Sequence[int], paint: Callable[[Canvas, Sequence[int]], torch.Tensor], *,  # noqa: PLR0913
                tile_px: int, factor: int, redrawn: bool = False) -> torch.Tensor:
    """Returns painted unit images (B, C, H, W): each alone, and of each only what is not kept, see `paint_box`.

    Args:
        paint: what paints a canvas whose sides are multiples of `factor` and no shorter than `tile_px`.
        redrawn: whether `paint` changes what it keeps too, so that it must see all of it.
    """
    height, width = canvas.image.shape[-2:]
    done = []
    for i, seed in enumerate(seeds):
        one = canvas.row(i).padded(factor)
        box = paint_box(~(one.keep_in if redrawn else one.keep | one.keep_in)[0], tile_px=tile_px, factor=factor)
        painted = one.shown.clone()
        if box is not None:
            painted[(..., *box)] = paint(one.cut(box), [seed])
        done.append(painted[..., :height, :width])
    return torch.cat(done)


def corners(length: int, tile: int) -> list[int]:
    """Returns where tiles of `tile` cells begin along a side of `length` cells: evenly, half a tile apart at most."""
    n = math.ceil((length - tile) / max(1, tile // 2)) + 1
    return [round(i * (length - tile) / max(1, n - 1)) for i in range(n)]


def tile_weight(tile: int) -> torch.Tensor:
    """Returns the weight of each cell of a tile, (tile, tile): sin^2 along both sides, 1 amid it, above 0 all over."""
    side = torch.sin(math.pi * (torch.arange(tile) + 0.5) / tile).square()
    return side[:, None] * side


def counted(denoise: Denoise, tick: Callable[[], None]) -> Denoise:
    """Returns `denoise` of latents (B, c, h, w), with a call of `tick` at every evaluation: one for all its tiles."""
    def call(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        """Returns the clean estimate (B, c, h, w) of latents (B, c, h, w)."""
        tick()
        return denoise(latents, sigma)

    return call


def tiled(unet: UNet2DModel, told: Told, keep: torch.Tensor, *, guidance: float, tile_batch: int) -> Denoise:
    """Returns the denoiser of a canvas of any size from the network of one tile; told and keep are (B, *, h, w).

    Where canvas and tile are one, it is the network alone, bit for bit. Tiles with nothing to paint (`keep` True all
    over) are skipped; cells that no tile covers are the known latents.

    Args:
        tile_batch: tiles that go through the network together.
    """
    tile, (height, width) = int(unet.config.sample_size), keep.shape[-2:]
    if (height, width) == (tile, tile):
        return lambda latents, sigma: guided(unet, told, latents, sigma, guidance=guidance)
    places = [(i, slice(y, y + tile), slice(x, x + tile)) for i in range(len(keep))
              for y in corners(height, tile) for x in corners(width, tile)
              if not keep[i, 0, y:y + tile, x:x + tile].all()]
    weight = tile_weight(tile).to(keep.device)
    total = torch.zeros(len(keep), 1, height, width, device=keep.device)
    for i, rows, columns in places:
        total[i, :, rows, columns] += weight
    log.info("%d x %d cells: %d tiles of %d, %d network calls a level", height, width, len(places), tile,
             math.ceil(len(places) / tile_batch) * (1 if guidance == 1 else 2))

    def _cut(values: torch.Tensor, some: Sequence[tuple[int, slice, slice]]) -> torch.Tensor:
        return torch.stack([values[i, :, rows, columns] for i, rows, columns in some])

    def denoise(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        """Returns the clean estimate (B, c, h, w) of latents (B, c, h, w)."""
        mean = torch.zeros_like(latents)
        for start in range(0, len(places), tile_batch):
            some = places[start:start + tile_batch]
            part = Told(_cut(told.condition, some), _cut(told.unlabelled, some))
            estimates = guided(unet, part, _cut(latents, some), sigma, guidance=guidance)
            for (i, rows, columns), estimate in zip(some, estimates, strict=True):
                mean[i, :, rows, columns] += weight * estimate
        known = told.condition[:, :latents.shape[1]]
        return torch.where(total > 0, mean / total.clamp(min=torch.finfo(total.dtype).tiny), known)

    return denoise
