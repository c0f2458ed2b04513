"""What a frequency prior is fitted on, and what of an image it looks at."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synth.core.config import Settings

Kind = Literal["edge_raw", "edge_mean_removed", "whole", "contour_only"]
DEFAULT_BANDS = 64
"""Rings of a prior that is fitted at native sizes."""


class PriorSettings(Settings):
    """How a frequency prior is measured; two priors can be compared or merged if these are equal.

    Attributes:
        kind: what is transformed. "edge_raw": the image within `edge_px` of a class's outline, black elsewhere, as in
            FPGM. "edge_mean_removed": the same, its mean subtracted within the band, so that the band's own outline
            counts less. "contour_only": the band itself, without any image: the control. "whole": the entire image.
        size: side, px, to which images are resized first; null = native sizes.
        bands: rings between 0 and 0.5 cycles per pixel; null = half the size, one ring per step as in FPGM.
        sectors: directions told apart.
        edge_px: how far the band reaches on both sides of an outline.
        channels: "own" = every channel by itself; "grey" = their luma alone, as in FPGM.
    """

    kind: Kind = "edge_raw"
    size: int | None = Field(256, ge=16)
    bands: int | None = Field(None, ge=4)
    sectors: int = Field(8, ge=2, multiple_of=2)
    edge_px: int = Field(2, ge=1)
    channels: Literal["own", "grey"] = "own"

    @property
    def n_bands(self) -> int:
        """Number of rings."""
        if self.bands is not None:
            return self.bands
        return DEFAULT_BANDS if self.size is None else self.size // 2
