"""Where real data lie."""

from __future__ import annotations

from typing import Literal

from synth.core.config import Settings


class DataSettings(Settings):
    """Where the real data lie; folders in any supported format."""

    labelled: str | None = None
    unlabelled: str | None = None
    mask_map: str | None = None
    channels: Literal[1, 3] | None = None
