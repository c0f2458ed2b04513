"""A small network on the segmenter's features, in whose space contrastive terms compare pixels or images."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segtrain.heads.sizes import Sizes
from synth.core.checks import UserError
from synth.core.config import Settings


class ProjectorNet(nn.Module):
    """Two 1x1 convolutions; what comes out has length 1."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(n_in, n_in, 1), nn.ReLU(), nn.Conv2d(n_in, n_out, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Returns directions (B, n_out, h, w) of length 1 of features (B, n_in, h, w)."""
        return F.normalize(self.layers(features).float(), dim=1)


class Projector(Settings):
    """Slot member `projector`.

    Attributes:
        of: which features it reads, `Seen.hidden` or `Seen.coarse`. net: of which network; null = the first.
        width: of its space.
    """

    of: Literal["hidden", "coarse"] = "hidden"
    net: str | None = None
    width: int = Field(16, ge=2)

    def __call__(self, sizes: Sizes) -> nn.Module:
        """Returns the module.

        Raises:
            UserError: if there is no such network.
        """
        if self.net is not None and self.net not in sizes.of_net:
            raise UserError(f"projector net {self.net}", rule="this topology has no such network",
                            repair=f"take one of {', '.join(sizes.of_net)}")
        widths = sizes.widths if self.net is None else sizes.of_net[self.net]
        return ProjectorNet(getattr(widths, self.of), self.width)


PROJECTORS: dict[str, type[Settings]] = {"projector": Projector}
"""Heads of this module by the name that method files use."""
