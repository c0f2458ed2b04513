"""Parameters drawn row by row: row i depends on its own generator alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from synth.core.checks import UserError


def drawn_between(rngs: Sequence[torch.Generator], between: tuple[float, float], *, p: float, name: str,
                  bounds: tuple[float, float]) -> torch.Tensor:
    """Returns one number per generator, (B,) float64: uniform in `between` with probability `p`, else 0.

    Args:
        name: of the setting. bounds: what `between` must lie in.

    Raises:
        UserError: if `between` is not an ascending range within `bounds`.
    """
    low, high = between
    if not bounds[0] <= low <= high <= bounds[1]:
        raise UserError(f"{name}={list(between)}", rule=f"a range within [{bounds[0]}, {bounds[1]}], smaller number "
                        "first", repair=f"write for example {name}=[{bounds[0]}, {bounds[1]}]")
    u = torch.stack([torch.rand(2, generator=rng, dtype=torch.float64) for rng in rngs])
    return (u[:, 0] < p) * (low + (high - low) * u[:, 1])
