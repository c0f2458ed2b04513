"""What a head must know of the network it sits on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segtrain.models import Widths


@dataclass(frozen=True)
class Sizes:
    """Widths of the segmenter's features, channels of the images, number of classes; widths of each network by name."""

    widths: Widths
    channels: int
    n_classes: int
    of_net: Mapping[str, Widths] = field(default_factory=dict)
