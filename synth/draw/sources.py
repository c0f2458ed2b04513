"""What one batch of pairs is drawn from: transformed real pairs, each a function of (run seed, candidate key) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from synth.core.checks import UserError
from synth.core.pairs import Arrays
from synth.core.rng import choice, derive_seed, sample_rng
from synth.core.space import labels_to_keep
from synth.layouts import (
    Anatomy,
    LayoutSettings,
    apply_layout,
    draw_layout,
    layout_to_json,
    learn_anatomy,
)


@dataclass(frozen=True)
class Sources:
    """A batch of transformed real pairs.

    Attributes:
        keys: of the candidates, the same for every engine. rows: of their parents in the labelled set.
        seeds: of the generator.
        pixels: (B, C, S, S). labels: (B, S, S) uint8. layouts: JSON text of each edit.
        keep_in: (B, S, S) bool, no foreground, yet shown through: the frame round the picture.
        others: id and group of the pair that each layout takes foreground from, None without.
    """

    keys: tuple[str, ...]
    rows: tuple[int, ...]
    seeds: tuple[int, ...]
    pixels: np.ndarray
    labels: np.ndarray
    layouts: tuple[str, ...]
    keep_in: np.ndarray
    others: tuple[tuple[str, str] | None, ...]


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
                    layout: LayoutSettings, anatomy: Anatomy | None = None) -> Sources:
    """Returns the transformed sources of candidates `keys`, their parents chosen among `rows`.

    Args:
        anatomy: of `labelled`, where it has been learnt before.
    """
    anatomy = anatomy or learn_anatomy(labelled, layout)
    chosen, seeds, placed, layouts, others = [], [], [], [], []
    for name in keys:
        rng = sample_rng(seed, "layout", name)
        row = rows[choice(rng, len(rows))]
        edit = draw_layout(rng, labelled, row, rows=rows, anatomy=anatomy, settings=layout)
        second = labelled.ids.index(edit.recombined.other) if edit.recombined else None
        other = None if second is None else (labelled.images[second], labelled.masks[second])
        placed.append(apply_layout(labelled.images[row], labelled.masks[row], edit, other=other))
        others.append(None if second is None else (labelled.ids[second], labelled.groups[second]))
        chosen.append(row)
        seeds.append(derive_seed(seed, "pair", name))
        layouts.append(layout_to_json(edit))
    return Sources(tuple(keys), tuple(chosen), tuple(seeds), np.stack([p.pixels for p in placed]),
                   np.stack([p.labels for p in placed]), tuple(layouts), np.stack([p.keep_in for p in placed]),
                   tuple(others))
