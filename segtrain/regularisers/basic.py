"""Regularisers that need nothing but what the branches said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from synth.core.checks import UserError
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Returns the mean over pixels (scalar) of the entropy, in nats, of logits (B, K, H, W)."""
    log = logits.float().log_softmax(dim=1)
    return -(log.exp() * log).sum(dim=1).mean()


class Entropy(Settings):
    """Slot member `entropy`: entropy minimisation on what the branches say of the views (Grandvalet & Bengio 2004)."""

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the mean entropy (scalar) over the views.

        Raises:
            UserError: if there are none.
        """
        if not scene.shown:
            raise UserError("regulariser entropy", rule="it speaks of views, and this phase shows none", repair="give "
                            "the phase a view, with loss: null if nothing else shall learn from it")
        return torch.stack([entropy(view.seen.logits) for view in scene.shown]).mean()


BASIC: dict[str, type[Settings]] = {"entropy": Entropy}
"""Regularisers of this module by the name that method files use."""
