"""How pairs are drawn, and how a foreground is pasted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat

from synth.core.config import Settings
from synth.draw.curation import CurateSettings
from synth.draw.painters import ClearSettings
from synth.draw.supply import SupplySettings
from synth.layouts import LayoutSettings


class DrawSettings(Settings):
    """How pairs are drawn.

    Attributes:
        layout: of a generator that shows its source in another appearance (kinds spectral and appearance), mirroring
            alone is done.
        shard_size: kept pairs per file. batch_size: candidates painted together, fixed so that files are identical
            for any number of processes. max_tries: candidates per wanted pair before a shard gives up.
        supply: how many pairs have to pass the gates for each one that is kept, and which are.
        curate: which of a pair's pixels teach, and whether a referee has to find its mask again.
        clear: which unlabelled images show no object, for hosts and for pasting.
        repaint_share: of the candidates, those whose objects are repainted before their surroundings are, so that one
            run varies both; other generators than None must know modes (`denoiser.labels`).
        appearance_share: of the candidates, those whose source gets other amplitudes before anything is painted, where
            there is a generator that changes them (`appearance=`); what is then kept is kept of that source.
        window: how far around the objects a generator of scale "native" paints, as a share of its own size (never
            narrower than that size); beyond, the source is kept. "all" = the whole image.
    """

    layout: LayoutSettings = LayoutSettings()
    shard_size: int = Field(32, ge=1)
    batch_size: int = Field(16, ge=1)
    max_tries: int = Field(4, ge=1)
    supply: SupplySettings = SupplySettings()
    curate: CurateSettings = CurateSettings()
    clear: ClearSettings = ClearSettings()
    repaint_share: float = Field(0.0, ge=0, le=1)
    appearance_share: float = Field(1.0, ge=0, le=1)
    window: Literal["all"] | NonNegativeFloat = 0.5


class CopyPasteSettings(Settings):
    """How wide the rim of a pasted foreground is."""

    width_px: int = Field(4, ge=1)
