"""Further forms of the unlabelled images that a method's views start from, made once for a run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import numpy as np

from synth.core.checks import UserError
from synth.core.pairs import Arrays

INPUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
"""Pixels (C, H, W) -> pixels (C, H, W) of the same type, by the name that method files use."""


def make_inputs(pile: Arrays | None, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns every form of `names` of every image of `pile`, pixels (N, C, S, S).

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
    return {name: np.stack([INPUTS[name](pile.images[i]) for i in range(len(pile))]) for name in names}
