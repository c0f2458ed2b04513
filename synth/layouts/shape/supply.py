"""New label maps from a shape model: their codes are drawn first, then decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from synth.core.checks import IGNORE
from synth.core.pairs import Arrays
from synth.core.rng import choice, uniform
from synth.layouts.rules import Rules
from synth.layouts.settings import ShapeDraw
from synth.layouts.shape.model import ShapeModel

DIGITS = 4
"""Decimals of a recorded code; what is decoded is what was recorded."""


@dataclass(frozen=True)
class ShapeCode:
    """A layout of a shape model: the model's content hash, the code, and id of a second parent, "" without."""

    model: str
    code: tuple[float, ...]
    other: str = ""


@dataclass(frozen=True)
class Shapes:
    """A shape model with the codes (N, D) of the labelled maps that layouts are drawn near.

    Attributes:
        least_px: foreground of a layout, px: half of what the labelled map with the least shows. Less is a crumb.
    """

    model: ShapeModel
    codes: torch.Tensor
    identity: str
    least_px: float

    @classmethod
    def of(cls, model: ShapeModel, labelled: Arrays) -> Shapes:
        """Returns the model with the codes of `labelled`."""
        masks = np.stack([labelled.masks[i] for i in range(len(labelled))])
        areas = ((masks > 0) & (masks != IGNORE)).sum((1, 2)).astype(float)
        return cls(model, model.encode(torch.from_numpy(masks.astype(np.int64))), model.content_hash(),
                   areas[areas > 0].min(initial=np.inf) / 2)

    def labels(self, code: ShapeCode) -> np.ndarray:
        """Returns the labels (S, S) uint8 of `code`, a function of it alone."""
        assert code.model == self.identity, "a code is one of the model that it was drawn from"
        return self.model.decode(torch.tensor([code.code]))[0].numpy().astype(np.uint8)


TRIES = 20
"""Codes drawn before a layout is given up."""


def draw_code(rng: torch.Generator, labelled: Arrays, row: int, *, rows: Sequence[int], shapes: Shapes, rules: Rules,
              settings: ShapeDraw) -> tuple[int, ShapeCode] | None:
    """Returns row and code of a plausible new map that breaks no rule; None if `TRIES` codes give none.

    Between two labelled maps, one of them `row`: a point of the line, with noise of half the temperature. Anywhere: a
    code of the prior at that temperature, and the row is that of the map among `rows` whose code lies nearest.
    """
    for _ in range(TRIES):
        noise = torch.randn(shapes.codes.shape[1], generator=rng)
        others = [r for r in rows if r != row]
        if others and uniform(rng, 0, 1) < settings.between:
            parent, second, along = row, others[choice(rng, len(others))], uniform(rng, 0.2, 0.8)
            code = torch.lerp(shapes.codes[row], shapes.codes[second], along) + 0.5 * settings.temperature * noise
        else:
            code, second = settings.temperature * noise, None
            parent = rows[int((shapes.codes[list(rows)] - code).square().sum(1).argmin())]
        drawn = ShapeCode(shapes.identity, tuple(round(v, DIGITS) for v in code.tolist()),
                          "" if second is None else labelled.ids[second])
        labels = shapes.labels(drawn)
        if (labels > 0).sum() >= shapes.least_px and not rules.broken(labels) and _plausible(labels, shapes, settings):
            return parent, drawn
    return None


def _plausible(labels: np.ndarray, shapes: Shapes, settings: ShapeDraw) -> bool:
    return float(shapes.model.percentile(torch.from_numpy(labels.astype(np.int64))[None])) <= settings.max_percentile
