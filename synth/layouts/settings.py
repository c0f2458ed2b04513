"""How pairs are rearranged before they are painted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from synth.core.checks import UserError
from synth.core.config import Settings
from synth.layouts.rules import RuleSettings

Mirror = Literal["none", "horizontal", "vertical", "both"]


class ShapeDraw(Settings):
    """How layouts are drawn from a shape model.

    Attributes:
        temperature: spread of the codes, 1 = as the model learnt them.
        between: share of layouts whose code lies between those of two labelled maps; the others lie anywhere.
        max_percentile: largest percentile of the model's energy, among real maps held aside, that a layout may have.
    """

    temperature: float = Field(0.8, ge=0, le=3)
    between: float = Field(0.5, ge=0, le=1)
    max_percentile: float = Field(0.95, gt=0, le=1)


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
        balance: 0 draws every labelled map equally often, 1 as often as its rarest class is rare.
        rules: where classes lie; what breaks a rule is drawn again.
        source: "transform" moves labelled maps, "shape" draws new ones from a shape model.
        grow_px: largest growth or shrinkage of each class, px. bend_px: standard deviation by which the outline moves,
            smoothly along it, px. Both change what pixels mean, as "shape" does: only for generators that keep nothing.
        shape: how layouts are drawn from the shape model.
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
    balance: float = Field(0.0, ge=0, le=1)
    rules: RuleSettings = RuleSettings()
    source: Literal["transform", "shape"] = "transform"
    grow_px: float = Field(0.0, ge=0, le=32)
    bend_px: float = Field(0.0, ge=0, le=16)
    shape: ShapeDraw = ShapeDraw()

    @property
    def is_free(self) -> bool:
        """Whether labels change shape in ways that pixels cannot follow."""
        return self.source == "shape" or self.grow_px > 0 or self.bend_px > 0


def check_moves_alone(layout: LayoutSettings, *, rule: str, repair: str) -> None:
    """Returns nothing; raises if `layout` asks for more than to move, turn and bend maps, each as often as another.

    Args:
        rule: why nothing else is done here. repair: where it is.

    Raises:
        UserError: naming the setting.
    """
    plain = LayoutSettings(recombine=0.0)
    for name in ("recombine", "balance", "grow_px", "bend_px", "source"):
        told, still = getattr(layout, name), getattr(plain, name)
        if told != still:
            words = [one if isinstance(one, str) else f"{one:g}" for one in (told, still)]
            raise UserError(f"layout.{name}={words[0]}", rule=rule, repair=f"write {words[1]}; {repair}")
    for name in RuleSettings.model_fields:
        if getattr(layout.rules, name) != getattr(plain.rules, name):
            raise UserError(f"layout.rules.{name}", rule=f"{rule}, and no rule is asked",
                            repair=f"leave it out; {repair}")
