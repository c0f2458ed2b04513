"""Further forms of the unlabelled images that a method's views start from, made once for a run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import numpy as np

from segtrain.streams.patches import in_rows
from segtrain.streams.trees import TREES
from synth.core.checks import UserError
from synth.core.pairs import Arrays, Rows

INPUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {**TREES}
"""Pixels (C, H, W) -> pixels (C, H, W) of the same type, by the name that method files use."""


def make_inputs(pile: Arrays | None, names: Sequence[str]) -> dict[str, np.ndarray | Rows]:
    """Returns every form of `names` of every image of `pile`, pixels (N, C, S, S), or (C, H, W) row by row.

    Raises:
        UserError: if there is no such form.
    """
    for name in names:
        if name not in INPUTS:
            near = difflib.get_close_matches(name, INPUTS, n=1, cutoff=0.0)
            raise UserError(f"input: {name}", rule="no such form of an image",
                            repair=f"did you mean {near[0]}?" if near else "")
    if pile is None:
        return {}
    forms = {name: [INPUTS[name](pile.images[i]) for i in range(len(pile))] for name in names}
    return {name: in_rows(some) if pile.is_native else np.stack(some) for name, some in forms.items()}
