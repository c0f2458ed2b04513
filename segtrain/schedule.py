"""How much a term weighs over a run."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from synth.core.checks import UserError
from synth.core.config import Settings

ROUNDING = 1e-6
"""How far shares that were written in decimals may add up to more than 1."""


class Schedule(Settings):
    """A weight over the run, or over the phase it belongs to.

    Attributes:
        kind: "const"; "exp": max * exp(-5 (1 - t/length)^2) up to `length`, then `max` (Laine & Aila 2017); "linear":
            max * t/length up to `length`. Before `start` it is 0.
        length, start, unit: the unit is "fraction" of the run or optimiser "steps", and has no default, because a ramp
            in steps changes its meaning when the run is shortened.
    """

    kind: Literal["const", "exp", "linear"] = "const"
    max: float = Field(1.0, ge=0)
    length: float | None = Field(None, gt=0)
    start: float = Field(0.0, ge=0)
    unit: Literal["fraction", "steps"] | None = None

    def at(self, progress: float, n_steps: int) -> float:
        """Returns the weight when the share `progress` of `n_steps` is done."""
        scale = n_steps if self.unit == "steps" else 1
        t = progress * scale - self.start
        if t < 0:
            return 0.0
        if self.kind == "const":
            return self.max
        left = 1 - min(t / self.length, 1)
        return self.max * (math.exp(-5 * left**2) if self.kind == "exp" else 1 - left)

    def check(self, name: str) -> None:
        """Returns nothing; raises if it is a ramp without a length or a unit, or one that is not over with the run.

        Raises:
            UserError: about `name`.
        """
        if (self.kind != "const" and self.length is None) or ((self.length or self.start) and self.unit is None):
            raise UserError(name, rule="a ramp has a length and a unit",
                            repair="add length: 0.4 and unit: fraction (or unit: steps)")
        end = self.start + (self.length or 0)
        if self.unit == "fraction" and (end > 1 + ROUNDING or self.start >= 1):
            raise UserError(name, rule=f"a ramp up to {end:g} of the run is not over when the run is", repair="give "
                            "start and length as shares that add up to 1 at most, or write unit: steps")
