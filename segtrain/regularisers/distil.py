"""What a student shares with its teachers beside pixels: the whole image, and how regions resemble each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from synth.core.checks import UserError
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.models import Seen
    from segtrain.scene import Scene


def image_distance(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Returns the mean over images (scalar) of |mean_pixels(mine) - mean_pixels(theirs)|_1, both (B, C, H, W)."""
    return (mine.float().mean(dim=(2, 3)) - theirs.float().mean(dim=(2, 3))).abs().sum(dim=1).mean()


def self_similarity(features: torch.Tensor, n: int) -> torch.Tensor:
    """Returns the cosines (B, n n, n n) between the n x n regions of features (B, D, h, w)."""
    regions = F.normalize(F.adaptive_avg_pool2d(features.float(), n).flatten(2), dim=1)
    return regions.transpose(1, 2) @ regions


def region_distance(mine: torch.Tensor, theirs: torch.Tensor, n: int) -> torch.Tensor:
    """Returns the mean squared difference (scalar) of self-similarities; (B, D, h, w) and (B, E, h', w') may differ."""
    return (self_similarity(mine, n) - self_similarity(theirs, n)).square().mean()


class _Distil(Settings):
    # Which view shows the student the clean images, and which networks teach it.
    view: int = Field(0, ge=0)
    teachers: tuple[str, ...] = ("wide", "other")

    def _pairs(self, scene: Scene) -> list[tuple[Seen, Seen]]:
        shown = scene.view(self.view)
        if shown.images is not scene.clean:
            raise UserError(f"view {self.view}", rule="student and teachers are compared on the same images, and this "
                            "view does not show the clean ones", repair="name a view without perturb")
        return [(shown.seen, scene.said(name)) for name in self.teachers]


class ImageDistil(_Distil):
    """Slot member `image_distil`: mean logits of the image, the only features of the same width in all networks."""

    needs: ClassVar[tuple[str, ...]] = ("unlabelled",)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the mean `image_distance` (scalar) to the teachers, which get no gradient."""
        return torch.stack([image_distance(a.logits, b.logits) for a, b in self._pairs(scene)]).mean()


class RegionDistil(_Distil):
    """Slot member `region_distil`: how regions of the encoder's last features resemble each other."""

    n: int = Field(7, ge=2)
    needs: ClassVar[tuple[str, ...]] = ("unlabelled",)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the mean `region_distance` (scalar) to the teachers, which get no gradient."""
        return torch.stack([region_distance(a.coarse, b.coarse, self.n) for a, b in self._pairs(scene)]).mean()


DISTIL: dict[str, type[Settings]] = {"image_distil": ImageDistil, "region_distil": RegionDistil}
"""Regularisers of this module by the name that method files use."""
