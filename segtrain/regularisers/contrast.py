"""Contrastive terms: two looks at one image, or at one place, are alike and unlike all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from segtrain.regularisers.pixels import features_at, head_of, pick, place_of
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene

FAR = -1e4
"""A logit that counts for nothing in a softmax, and yet is finite."""


def info_nce(a: torch.Tensor, b: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Returns the loss (scalar) that tells a_i's partner b_i from all other rows of a and b (B, D), of length 1.

    -log exp(a_i b_i / T) / sum_{z != a_i} exp(a_i z / T), mean over the rows of both (SimCLR, Chen et al. 2020, eq. 1).
    """
    z = torch.cat([a, b]).float()
    similar = z @ z.T / temperature
    similar = similar.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), FAR)
    return F.cross_entropy(similar, torch.arange(len(z), device=z.device).roll(len(a)))


def local_nce(a: torch.Tensor, b: torch.Tensor, found: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Returns the loss (scalar) that tells place i's partner in the other view from the other places of that image.

    Chaitanya et al. 2020, local loss, with the other view's places as negatives, both ways round.

    Args:
        a, b: (B, n, D), of length 1. found: (B, n) bool, the places that count; without any the loss is 0.
    """
    similar = a.float() @ b.float().mT / temperature
    partner = torch.arange(a.shape[1], device=a.device).expand(len(a), -1)
    ways = [F.cross_entropy(s.masked_fill(~found[:, None], FAR).mT, partner, reduction="none")
            for s in (similar, similar.mT)]
    return (found * (ways[0] + ways[1])).sum() / (2 * found.sum()).clamp(min=1)


class GlobalNce(Settings):
    """Slot member `global_nce`: two views of an image are alike as a whole, and unlike every other image.

    Attributes:
        head: a projector of the `coarse` features. views: the two.
    """

    needs: ClassVar[tuple[str, ...]] = ("unlabelled",)
    head: str = "global"
    views: tuple[int, int] = (0, 1)
    temperature: float = Field(0.1, gt=0)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar) over the unlabelled images."""
        head = head_of(scene, self.head)
        seen = [view.seen for view in scene.two_views(self.views)]
        a, b = head(torch.cat([s.coarse.mean(dim=(2, 3), keepdim=True) for s in seen]))[:, :, 0, 0].chunk(2)
        # Data parallelism wants a gradient, be it zero, of all that looked; nothing else asks these logits.
        unasked = 0 * sum(level.sum() for some in seen for level in (some.logits, *some.deep))
        return info_nce(a, b, temperature=self.temperature) + unasked


class LocalNce(Settings):
    """Slot member `local_nce`: one place in two views is alike, and unlike the other places of its image.

    Attributes:
        head: a projector of the `hidden` features. views: the two. n: places in each image.
    """

    needs: ClassVar[tuple[str, ...]] = ("unlabelled",)
    head: str = "local"
    views: tuple[int, int] = (0, 1)
    n: int = Field(13, ge=2)
    temperature: float = Field(0.1, gt=0)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar) over places that both views show."""
        shown = scene.two_views(self.views)
        size = tuple(shown[0].images.shape[-2:])
        places, there = zip(*(place_of(view) for view in shown), strict=True)
        picked = pick(there[0] & there[1], scene.rngs("local_nce"), self.n)
        head = head_of(scene, self.head)
        # Regions rather than pixels: means of 3x3 cells.
        features = head(torch.cat([F.avg_pool2d(view.seen.hidden, 3, 1, 1, count_include_pad=False) for view in shown]))
        a, b = (features_at(some, place.flatten(1).gather(1, picked.index), size)
                for some, place in zip(features.chunk(2), places, strict=True))
        return local_nce(a, b, picked.found, temperature=self.temperature)


CONTRAST: dict[str, type[Settings]] = {"global_nce": GlobalNce, "local_nce": LocalNce}
"""Regularisers of this module by the name that method files use."""
