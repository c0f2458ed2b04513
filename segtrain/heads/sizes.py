"""What a head must know of the network it sits on."""

from __future__ import annotations

from dataclasses import dataclass

from segtrain.models import Widths


@dataclass(frozen=True)
class Sizes:
    """Widths of the segmenter's features, channels of the images, number of classes."""

    widths: Widths
    channels: int
    n_classes: int
