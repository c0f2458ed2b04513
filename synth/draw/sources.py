"""What one batch of pairs is drawn from: transformed real pairs, each a function of (run seed, candidate key) alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from synth.core.checks import UserError
from synth.core.pairs import Arrays
from synth.core.rng import choice, derive_seed, sample_rng
from synth.core.space import labels_to_keep
from synth.layouts import LayoutSettings, apply_image, apply_mask, draw_fitting


@dataclass(frozen=True)
class Sources:
    """A batch of transformed real pairs.

    Attributes:
        keys: of the candidates, the same for every engine. rows: of their parents in the labelled set.
        seeds: of the generator.
        pixels: (B, C, S, S). labels: (B, S, S) uint8. layouts: JSON text of each edit.
    """

    keys: tuple[str, ...]
    rows: tuple[int, ...]
    seeds: tuple[int, ...]
    pixels: np.ndarray
    labels: np.ndarray
    layouts: tuple[str, ...]


def rows_with_foreground(labelled: Arrays) -> list[int]:
    """Returns the rows of pairs whose mask shows any foreground.

    Raises:
        UserError: if there is none at this resolution.
    """
    there = labels_to_keep(torch.from_numpy(labelled.masks.astype(np.int64))).any(2).any(1)
    rows = [int(i) for i in there.nonzero()]
    if not rows:
        raise UserError(f"the labelled set at {labelled.images.shape[-1]} px", rule="no mask shows any foreground",
                        repair="give pairs with foreground, or a larger size")
    return rows


def transform_pairs(labelled: Arrays, keys: Sequence[str], *, rows: Sequence[int], seed: int,
                    layout: LayoutSettings) -> Sources:
    """Returns the transformed sources of candidates `keys`, their parents chosen among `rows`."""
    chosen, seeds, pixels, labels, layouts = [], [], [], [], []
    for name in keys:
        rng = sample_rng(seed, "layout", name)
        row = rows[choice(rng, len(rows))]
        params = draw_fitting(rng, labelled.masks[row], layout)
        chosen.append(row)
        seeds.append(derive_seed(seed, "pair", name))
        pixels.append(apply_image(labelled.images[row], params))
        labels.append(apply_mask(labelled.masks[row], params))
        layouts.append(json.dumps(dataclasses.asdict(params), sort_keys=True))
    return Sources(tuple(keys), tuple(chosen), tuple(seeds), np.stack(pixels), np.stack(labels), tuple(layouts))
