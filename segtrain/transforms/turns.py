"""Quarter turns and mirror images: exact moves of square images, and their way back."""

from __future__ import annotations

import torch
from pydantic import Field

from synth.core.config import Settings


class TurnSettings(Settings):
    """A left-right mirror image, if `flip`, then `quarters` turns by 90 degrees against the clock."""

    quarters: int = Field(0, ge=0, le=3)
    flip: bool = False


def turned(values: torch.Tensor, turn: TurnSettings) -> torch.Tensor:
    """Returns values (B, C, S, S) or (B, S, S) turned; no value changes."""
    return (values.flip(-1) if turn.flip else values).rot90(turn.quarters, (-2, -1))


def turned_back(values: torch.Tensor, turn: TurnSettings) -> torch.Tensor:
    """Returns values (B, C, S, S) or (B, S, S) as they were before `turned`."""
    values = values.rot90(-turn.quarters, (-2, -1))
    return values.flip(-1) if turn.flip else values
