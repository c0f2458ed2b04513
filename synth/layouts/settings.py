"""How pairs are rearranged before they are painted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from synth.core.config import Settings

Mirror = Literal["none", "horizontal", "vertical", "both"]


class LayoutSettings(Settings):
    """Ranges of the random edit of a pair before it is painted.

    Attributes:
        flip: axes along which half of the pairs are mirrored, each axis by its own coin; only what the anatomy allows.
        scale: smallest and largest magnification. rotate_deg: largest angle. shift: largest move, share of the side.
        elastic: standard deviation of the smooth displacement, share of the side; 0 = none.
        min_foreground: share of the foreground's area that must stay inside the frame.
        recombine: probability of taking foreground from another labelled pair.
        recombine_mode: "add" puts its object beside the pair's own, "replace" puts its foreground in the own one's
            place; "auto" adds as often as labelled images show several objects, see `share_with_several`.
        gap_px: background pixels that stay between an added object and the others, and width of its soft rim.
        keep_in: "frame" lets the near-constant border (endoscope frame, air round a body) show through, see
            `detect_frame`; "none" has it painted like everything else.
    """

    flip: Mirror = "horizontal"
    scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    rotate_deg: float = Field(20.0, ge=0, le=180)
    shift: float = Field(0.15, ge=0, le=0.5)
    elastic: float = Field(0.015, ge=0, le=0.05)
    min_foreground: float = Field(0.6, ge=0, le=1)
    recombine: float = Field(0.25, ge=0, le=1)
    recombine_mode: Literal["auto", "add", "replace"] = "auto"
    gap_px: int = Field(4, ge=1)
    keep_in: Literal["frame", "none"] = "frame"
