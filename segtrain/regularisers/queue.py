"""U2PL's contrast of pixels: what is too uncertain to be a label is still certain not to be some classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field

from segtrain.regularisers.pixels import features_at, head_of, pick
from segtrain.transforms.warps import Rngs
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


@dataclass(frozen=True)
class Side:
    """Labelled images, or what a view shows of the unlabelled ones.

    Attributes:
        own: the student's projected features (B, D, h, w). keys: the teacher's. prob: what it says (B, K, H, W).
        labels: (B, H, W), 255 = none. unsure: (B, H, W) bool, too uncertain to teach; None: all are labelled.
        rngs: one of each image.
    """

    own: torch.Tensor
    keys: torch.Tensor
    prob: torch.Tensor
    labels: torch.Tensor
    unsure: torch.Tensor | None
    rngs: Rngs

    def anchors(self, k: int, least: float) -> torch.Tensor:
        """Returns the pixels (B, H, W) bool of class `k` that the teacher too finds at least so likely."""
        return (self.labels == k) & (self.prob[:, k] >= least)

    def negatives(self, k: int, low: int, high: int) -> torch.Tensor:
        """Returns the pixels (B, H, W) bool that are not of class `k`.

        Labelled: those of another class where `k` ranks above `low`, which are easily taken for it. Unsure: those where
        `k` is an unlikely class, ranked from `low` to below `high` (0 = most probable).
        """
        rank = (self.prob > self.prob[:, k:k + 1]).sum(dim=1)
        if self.unsure is None:
            return (self.labels != k) & (self.labels < self.prob.shape[1]) & (rank < low)
        return self.unsure & (rank >= low) & (rank < high)


def anchor_nce(anchors: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor, *, temperature: float
               ) -> torch.Tensor:
    """Returns -log(e^(a p/T) / (e^(a p/T) + sum_j e^(a n_j/T))), a scalar, mean over anchors (N, D).

    `positive` (D,) is the class's centre, `negatives` (N, M, D) are each anchor's own (U2PL, Wang et al. 2022).
    """
    near = anchors @ positive
    far = torch.einsum("nd,nmd->nm", anchors, negatives)
    similar = torch.cat([near[:, None], far], dim=1) / temperature
    return (similar.logsumexp(dim=1) - similar[:, 0]).mean()


class PixelNce(Settings):
    """Slot member `pixel_nce`: pixels of a class are near its centre and far from what is surely not that class.

    Attributes:
        head: a projector of the `hidden` features. view: whose target says what is reliable; the rest are negatives.
        low_rank, high_rank: an unsure pixel is a negative of the classes whose rank is in [low_rank, high_rank); null =
            K. With two classes low_rank must be 1: with the released 3 no pixel ever qualifies and the loss is 0.
        confident: least probability of an anchor. anchors: per class and step. negatives: per anchor.
        queue: remembered negatives of each class. fresh: new ones of each image and step.
    """

    head: str = "pixels"
    view: int = Field(0, ge=0)
    low_rank: int = Field(1, ge=1)
    high_rank: int | None = Field(None, ge=2)
    confident: float = Field(0.3, ge=0, lt=1)
    anchors: int = Field(256, ge=1)
    negatives: int = Field(50, ge=1)
    queue: int = Field(2048, ge=1)
    fresh: int = Field(16, ge=1)
    temperature: float = Field(0.5, gt=0)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar), mean over the classes that have anchors and negatives; 0 if none has."""
        sides = self._sides(scene)
        losses = [sides[0].own.sum() * 0]
        for k in range(scene.n_classes):
            own, keys = self._anchors(sides, k)
            queue = self._remember(scene, sides, k)
            if len(own) and len(queue):
                drawn = torch.randint(len(queue), (len(own), self.negatives), generator=sides[0].rngs[0])
                centre = F.normalize(keys.mean(dim=0), dim=0)
                losses.append(anchor_nce(own, centre, queue[drawn.to(queue.device)], temperature=self.temperature))
        return sum(losses) / max(len(losses) - 1, 1)

    def _sides(self, scene: Scene) -> tuple[Side, Side]:
        shown, head = scene.view(self.view), head_of(scene, self.head)
        teacher = scene.topology.labeller(shown.branch)
        seen = (scene.seen_by(shown.branch), shown.seen)
        said = (scene.said_of_supervised(teacher), scene.said_of_view(teacher, self.view))
        labels, unsure = (scene.supervised.labels, shown.target.labels()), (None, ~shown.target.valid)
        rngs = (scene.supervised_rngs("pixel_nce"), scene.rngs("pixel_nce"))
        with torch.no_grad():
            keys = [head(some.hidden) for some in said]
        return tuple(Side(head(seen[i].hidden), keys[i], said[i].logits.float().softmax(dim=1), labels[i], unsure[i],
                          rngs[i]) for i in range(2))

    def _anchors(self, sides: tuple[Side, Side], k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the student's and the teacher's features (N, D) of some pixels of class `k`."""
        each = -(-self.anchors // sum(len(side.labels) for side in sides))
        own, keys = [], []
        for side in sides:
            picked = pick(side.anchors(k, self.confident), side.rngs, each)
            size = tuple(side.labels.shape[-2:])
            own.append(features_at(side.own, picked.index, size)[picked.found])
            keys.append(features_at(side.keys, picked.index, size)[picked.found])
        return torch.cat(own), torch.cat(keys)

    def _remember(self, scene: Scene, sides: tuple[Side, Side], k: int) -> torch.Tensor:
        """Returns class `k`'s queue of negatives (N, D), this step's at its end, the oldest dropped."""
        high = scene.n_classes if self.high_rank is None else self.high_rank
        found = [scene.memory[f"pixel_nce_{k}"]] if f"pixel_nce_{k}" in scene.memory else []
        for side in sides:
            picked = pick(side.negatives(k, self.low_rank, high), side.rngs, self.fresh)
            found.append(features_at(side.keys, picked.index, tuple(side.labels.shape[-2:]))[picked.found])
        scene.memory[f"pixel_nce_{k}"] = torch.cat(found)[-self.queue:].clone()
        return scene.memory[f"pixel_nce_{k}"]


QUEUE: dict[str, type[Settings]] = {"pixel_nce": PixelNce}
"""Regularisers of this module by the name that method files use."""
