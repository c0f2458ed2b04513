"""Does a fitted translator translate, and does the content stay? Measured, written down, enforced; and looked at."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from synth.core.checks import IGNORE, UserError
from synth.core.files import replace_file
from synth.core.space import top_class, unit_to_pixels
from synth.gan.restyle.batches import Pool
from synth.gan.restyle.looks import look_distance, look_of
from synth.gan.restyle.pipeline import AppearancePipeline
from synth.gan.restyle.recipe import coach_input
from synth.gan.restyle.settings import RestyleHealthSettings
from synth.gan.structure import edge_distance

log = logging.getLogger(__name__)

N_LOOKED_AT = 16
"""Images of each style that are translated into every other one."""


@dataclass(frozen=True)
class Aside:
    """Labelled pairs that nothing was trained on: unit (N, C, S, S), labels (N, S, S)."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class RestyleHealth:
    """What a fitted translator does.

    Attributes:
        clusters: whether styles were found by their looks. styles: ids of the training images of each.
        labelled_styles: those that the coach knows.
        recognised: share of the training images that look most like their own style.
        moved: 1 - distance to the style asked for after translation over that before, mean over images and styles; by
            pair of styles in `moved_by`.
        edges: mean edge distance between images and translations; edges_apart: between images and other images.
        own: mean absolute difference from an image to itself in its own style, unit space.
        coach_dice: foreground Dice of the coach on labelled pairs held aside; coach_dice_translated: on the same ones
            in the other styles it knows. None without either. The translator learnt from this coach: a judge of
            another make (`synth draw judge=DIR`) says more.
    """

    clusters: bool
    styles: dict[str, list[str]]
    labelled_styles: list[str]
    recognised: float
    moved: float
    moved_by: dict[str, float]
    edges: float
    edges_apart: float
    own: float
    coach_dice: float | None
    coach_dice_translated: float | None


def _foreground_dice(coach: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, styles: list[int],
                     n_styles: int) -> float:
    device, seen = next(coach.parameters()).device, coach_input(images, torch.tensor(styles), n_styles)
    found = torch.cat([top_class(coach(one[None].to(device))).cpu() for one in seen])
    known = labels != IGNORE
    mine, theirs = (found > 0) & known, (labels > 0) & known
    return float(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()).clamp(min=1))


def _dices(pipeline: AppearancePipeline, coach: nn.Module, aside: Aside | None,
           known: torch.Tensor) -> tuple[float | None, float | None]:
    if aside is None:
        return None, None
    own, n, n_styles = pipeline.looks_like(aside.images), len(aside.images), len(known)
    real = _foreground_dice(coach, aside.images, aside.labels, styles=own, n_styles=n_styles)
    translated, labels, styles = [], [], []
    for k in known.nonzero().flatten().tolist():
        rows = [i for i in range(n) if own[i] != k]
        if rows:
            translated.append(pipeline.draw(aside.images[rows], [k] * len(rows), seeds=rows).cpu())
            labels.append(aside.labels[rows])
            styles += [k] * len(rows)
    if not labels:
        return real, None
    return real, _foreground_dice(coach, torch.cat(translated), torch.cat(labels), styles=styles, n_styles=n_styles)


@torch.no_grad()
def measure_restyle(pipeline: AppearancePipeline, coach: nn.Module, pool: Pool, aside: Aside | None, *,
                    ids: list[str]) -> RestyleHealth:
    """Returns the health of a fitted translator on its training images, and of its labels on pairs held aside."""
    styles, coach = pool.styles, coach.eval()
    of_image, names = styles.of_image, styles.names
    rows = [r for k in range(len(names)) for r in (of_image == k).nonzero().flatten().tolist()[:N_LOOKED_AT]]
    images = pool.images[rows]
    before = look_distance(look_of(images), styles.centres, styles.scale)
    moved_by, edges = {}, []
    for k, name in enumerate(names):
        made = pipeline.draw(images, [k] * len(rows), seeds=rows).cpu()
        after = look_distance(look_of(made), styles.centres, styles.scale)
        for j in (j for j in range(len(names)) if j != k):
            mine = of_image[rows] == j
            moved_by[f"{names[j]} -> {name}"] = float(1 - after[mine, k].mean() / before[mine, k].mean())
            edges.append(float(edge_distance(images[mine], made[mine])))
    own = pipeline.draw(images, of_image[rows].tolist(), seeds=rows).cpu()
    nearest = look_distance(look_of(pool.images), styles.centres, styles.scale).argmin(1)
    real, translated = _dices(pipeline, coach, aside, pool.known)
    return RestyleHealth(
        clusters=styles.clustered,
        styles={n: [i for i, s in zip(ids, of_image.tolist(), strict=True) if s == k] for k, n in enumerate(names)},
        labelled_styles=[n for n, there in zip(names, pool.known.tolist(), strict=True) if there],
        recognised=float((nearest == of_image).float().mean()), moved=sum(moved_by.values()) / len(moved_by),
        moved_by=moved_by, edges=sum(edges) / len(edges), edges_apart=float(edge_distance(images, images.roll(1, 0))),
        own=float((own - images).abs().mean()), coach_dice=real, coach_dice_translated=translated)


def enforce_restyle(health: RestyleHealth, limits: RestyleHealthSettings) -> None:
    """Returns nothing if translated images move towards their style; warns where the coach loses their labels.

    Raises:
        UserError: naming the value, its limit, and what to change.
    """
    if not health.moved >= limits.min_moved:
        raise UserError(f"moved={health.moved:.3g}", rule="translated images are no nearer to the style asked for than "
                        f"health.min_moved={limits.min_moved:g} of the way: the translator hardly translates",
                        repair="train longer (loop.steps), lower loss.cycle and loss.own, or give more images of each "
                        "style")
    real, translated = health.coach_dice, health.coach_dice_translated
    if real and translated is not None and translated < limits.min_mask_kept * real:
        log.warning("coach_dice_translated=%.2g: on real pairs held aside the coach's Dice is %.2g; labels may not "
                    "hold after translation. Repair: raise loss.edges and loss.mask, train longer, draw with a judge.",
                    translated, real)


@torch.no_grad()
def save_style_grid(pipeline: AppearancePipeline, pool: Pool, path: Path, *, n_each: int = 3, zoom: int = 2) -> None:
    """Writes a PNG: rows are real images, n_each of each style; columns the image itself and each style of `pipeline`.

    The picture shows patients' images, like the folder that it lies in.
    """
    of_image = pool.styles.of_image
    rows = [r for k in range(len(pool.styles.names)) for r in (of_image == k).nonzero().flatten().tolist()[:n_each]]
    images = pool.images[rows]
    columns = [images] + [pipeline.draw(images, [k] * len(rows), seeds=rows).cpu()
                          for k in range(len(pool.styles.names))]
    cells = unit_to_pixels(torch.stack(columns, 1).flatten(0, 1), (0.0, 255.0), np.dtype(np.uint8))
    high, wide = len(rows), len(columns)
    grid = cells.reshape(high, wide, *cells.shape[1:]).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(high * cells.shape[2], wide * cells.shape[3], cells.shape[1])
    picture = Image.fromarray(grid[..., 0] if grid.shape[2] == 1 else grid)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    replace_file(path, lambda p: picture.save(p, "PNG"))
