"""Batches of images and of masks that do not belong together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from synth.core.batches import rows_of
from synth.core.loop import Batch, Batches
from synth.core.pairs import Arrays
from synth.core.rng import derive_seed, sample_rng, uniform
from synth.core.space import pixels_to_unit
from synth.gan.told import labels_to_told
from synth.gan.unpaired.settings import UnpairedSettings
from synth.layouts import apply_mask, draw_fitting, keep_in_of


@dataclass(frozen=True)
class Unpaired:
    """What a fit learns from, at one working resolution.

    Attributes:
        images: without masks. masks: labels (M, S, S) uint8 that belong to none of them. n_classes: of the masks.
        frames: where each image shows its frame, (N, S, S) bool.
    """

    images: Arrays
    masks: np.ndarray
    n_classes: int
    frames: np.ndarray

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits over images, masks and the number of classes."""
        digest = hashlib.sha256(self.images.fingerprint().encode() + repr((self.n_classes, self.masks.shape)).encode())
        digest.update(np.ascontiguousarray(self.masks).data)
        return digest.hexdigest()[:16]


def frames_of(images: np.ndarray, *, keep_in: str) -> np.ndarray:
    """Returns the frame of each of pixels (N, C, S, S), (N, S, S) bool; none with `layout.keep_in` "none"."""
    nothing = np.zeros(images.shape[-2:], np.uint8)
    if keep_in == "none":
        return np.zeros((len(images), *nothing.shape), bool)
    return np.stack([keep_in_of(image, nothing) for image in images])


def edit_mask(mask: np.ndarray, settings: UnpairedSettings, *, rng: torch.Generator) -> np.ndarray:
    """Returns labels (S, S), as they are or moved at random; what moves in from outside is background."""
    if uniform(rng, 0, 1) < settings.still_share:
        return mask
    return apply_mask(mask, draw_fitting(rng, mask, settings.layout))


def _mirrored(step_rng: torch.Generator, settings: UnpairedSettings) -> tuple[int, ...]:
    axes = {"none": (), "horizontal": (1,), "vertical": (0,), "both": (0, 1)}[settings.layout.flip]
    return tuple(axis for axis in axes if uniform(step_rng, 0, 1) < 0.5)


def unpaired_batches(data: Unpaired, settings: UnpairedSettings) -> Batches:
    """Returns batches of images (B, C, S, S) with frames (B, 1, S, S), and masks (B, S, S) with what they tell."""
    seed, info = settings.loop.seed, data.images.info
    orders = {"images": seed, "masks": derive_seed(seed, "masks") % 2**31}

    def batches(step: int, rank: int, n_ranks: int) -> Batch:
        words = {"batch_size": settings.batch_size}
        images, frames = [], []
        for i, row in enumerate(rows_of(step, rank, n_ranks, n=len(data.images), seed=orders["images"], **words)):
            flips = _mirrored(sample_rng(seed, "mirror", step, rank, i), settings)
            images.append(np.flip(data.images.images[row], [1 + axis for axis in flips]))
            frames.append(np.flip(data.frames[row], flips))
        masks = [edit_mask(data.masks[row], settings, rng=sample_rng(seed, "edit", step, rank, i)) for i, row in
                 enumerate(rows_of(step, rank, n_ranks, n=len(data.masks), seed=orders["masks"], **words))]
        labels, there = torch.from_numpy(np.stack(masks).astype(np.int64)), torch.from_numpy(np.stack(frames))
        return {"images": pixels_to_unit(np.stack(images), info.intensity_range), "frames": there[:, None].float(),
                "masks": labels, "told": labels_to_told(labels, there & ~(labels > 0), n_classes=data.n_classes)}

    return batches
