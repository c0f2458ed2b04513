"""What a translator is told: classes, a signed distance to where they meet, the frame; and the training batches."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from synth.core.batches import rows_of
from synth.core.checks import IGNORE
from synth.core.loop import Batch, Batches
from synth.core.pairs import Arrays
from synth.core.rng import derive_seed, sample_rng, uniform
from synth.core.space import labels_to_onehot, pixels_to_unit
from synth.gan.settings import TranslateSettings
from synth.layouts import IDENTITY, apply_image, apply_mask, apply_region, draw_fitting, keep_in_of
from synth.layouts.warp import foreground_of


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Returns how far each pixel of labels (H, W) is from another class, (H, W) float32 in [-1, 1].

    A quarter of the side is 1; positive in the foreground, negative in the background, 0 where nothing is known. The
    image's border is no border of a class.
    """
    out, reach = np.zeros(mask.shape, np.float32), min(mask.shape) / 4
    for k in np.unique(mask):
        here = mask == k
        if k != IGNORE:
            depth = distance_transform_edt(here) if not here.all() else np.full(mask.shape, reach)
            out[here] = (np.minimum(depth / reach, 1) * (1 if k else -1))[here]
    return out


def labels_to_told(labels: torch.Tensor, keep_in: torch.Tensor, *, n_classes: int) -> torch.Tensor:
    """Returns what labels (B, H, W) and frames keep_in (B, H, W) bool tell, (B, n_classes + 2, H, W)."""
    distance = torch.stack([torch.from_numpy(signed_distance(m)) for m in labels.cpu().numpy().astype(np.uint8)])
    onehot = labels_to_onehot(labels.cpu(), n_classes)
    return torch.cat([onehot, distance[:, None], keep_in.cpu()[:, None].float()], 1)


def frames_of(arrays: Arrays, *, keep_in: str) -> np.ndarray:
    """Returns the frame of each image, (N, S, S) bool; none with `layout.keep_in` "none"."""
    if keep_in == "none":
        return np.zeros(arrays.masks.shape, bool)
    return np.stack([keep_in_of(i, m) for i, m in zip(arrays.images, arrays.masks, strict=True)])


def _edited(arrays: Arrays, frames: np.ndarray, row: int, *, rng: torch.Generator,
            settings: TranslateSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns pair `row`, edited at random: pixels (C, S, S), labels and frame (S, S); unknown where it moved in."""
    image, mask, frame = arrays.images[row], arrays.masks[row], frames[row]
    if uniform(rng, 0, 1) < settings.still_share:
        return image, mask, frame
    edit = draw_fitting(rng, mask, settings.layout)
    labels, moved = apply_mask(mask, edit), apply_region(frame, edit)
    moved = moved & ~foreground_of(labels)
    strange = ~moved & (apply_mask(np.ones_like(mask), edit) == 0) if edit != IDENTITY else np.zeros_like(moved)
    return (apply_image(image, edit, extended=moved), np.where(strange, IGNORE, labels).astype(np.uint8), moved)


def pair_batches(arrays: Arrays, held: Arrays | None, settings: TranslateSettings, *,
                 pile: Arrays | None = None) -> Batches:
    """Returns batches of edited pairs: images (B, C, S, S), labels and frames (B, S, S), told (B, K + 2, S, S).

    Args:
        held: pairs that are not trained on; each batch has some, as they are, under names that begin with "held_".
        pile: images without labels; each batch has as many as pairs, as they are, under the name "pile".
    """
    seed, info = settings.loop.seed, arrays.info
    keep_in, aside = settings.layout.keep_in, None
    frames = frames_of(arrays, keep_in=keep_in)
    if held is not None:
        aside = _batch(list(zip(held.images, held.masks, frames_of(held, keep_in=keep_in), strict=True)), held,
                       prefix="held_")

    def batches(step: int, rank: int, n_ranks: int) -> Batch:
        rows = rows_of(step, rank, n_ranks, n=len(arrays), batch_size=settings.batch_size, seed=seed)
        made = [_edited(arrays, frames, row, rng=sample_rng(seed, "edit", step, rank, i), settings=settings)
                for i, row in enumerate(rows)]
        batch = _batch(made, arrays, prefix="")
        if pile is not None:
            others = rows_of(step, rank, n_ranks, n=len(pile), batch_size=settings.batch_size,
                             seed=derive_seed(seed, "pile"))
            batch["pile"] = pixels_to_unit(pile.images[others], info.intensity_range)
        if aside is not None:
            turn = step % len(held)
            batch |= {k: v.roll(-turn, 0)[:N_HELD] for k, v in aside.items()}
        return batch

    assert info.n_classes > 1, "a set of pairs has a foreground"
    return batches


N_HELD = 2
"""Pairs held aside that each step looks at."""


def _batch(made: list[tuple[np.ndarray, np.ndarray, np.ndarray]], arrays: Arrays, *, prefix: str) -> Batch:
    images, masks, frames = (np.stack(column) for column in zip(*made, strict=True))
    labels = torch.from_numpy(masks.astype(np.int64))
    told = labels_to_told(labels, torch.from_numpy(frames), n_classes=arrays.info.n_classes)
    return {f"{prefix}images": pixels_to_unit(images, arrays.info.intensity_range), f"{prefix}labels": labels,
            f"{prefix}told": told}
