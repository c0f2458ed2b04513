"""A fit that dies in the middle, on the real training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from synth.core.loop import LoopSettings, train


class Killed(Exception):
    """What stands for a kill."""


def stopping(step: int) -> Callable[..., None]:
    """Returns the training loop, killed when it asks for the batch of `step`."""
    def run(recipe: object, batches: Callable[..., dict[str, torch.Tensor]], out: Path, settings: LoopSettings, *,
            label: str) -> None:
        def some(now: int, rank: int, n_ranks: int) -> dict[str, torch.Tensor]:
            if now == step:
                raise Killed
            return batches(now, rank, n_ranks)

        train(recipe, some, out, settings, label=label)

    return run
