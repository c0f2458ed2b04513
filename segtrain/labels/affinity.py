"""Labels that may be wrong: pixels whose features are unlike their own class and like another are told by affinity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field

from segtrain.ranks import gathered
from synth.core.checks import IGNORE
from synth.core.config import Settings
from synth.core.space import labels_to_onehot, top_class

if TYPE_CHECKING:
    from segtrain.scene import Scene, Supervised

UNSEEN = -9.0
"""In the memory of an image's quality, which is at least -1: not seen yet."""


@dataclass(frozen=True)
class Affinities:
    """Mean cosine of each pixel's feature (B, H, W) with its image's pixels of the same class, and of all others.

    Attributes:
        same, other: in [-1, 1]. known: (B, H, W) bool, where there are pixels of both kinds and the label is not 255.
    """

    same: torch.Tensor
    other: torch.Tensor
    known: torch.Tensor


def affinities(features: torch.Tensor, labels: torch.Tensor, n_classes: int) -> Affinities:
    """Returns how alike the features (B, D, h, w) of labels (B, H, W) are, image by image.

    MS-TFAL (Cui et al. 2023) compares with the frame before. Images here have no order, so the pixels of the image
    itself stand in; the mean cosine with a class is then the product with its mean unit feature.
    """
    unit = F.normalize(F.interpolate(features.float(), labels.shape[-2:], mode="bilinear", align_corners=False), dim=1)
    members = labels_to_onehot(labels, n_classes)
    sizes = members.sum(dim=(2, 3))
    sums = torch.einsum("bdhw,bkhw->bkd", unit, members)
    like = torch.einsum("bdhw,bkd->bkhw", unit, sums)
    others, n_others = like.sum(dim=1, keepdim=True) - like, sizes.sum(dim=1, keepdim=True) - sizes
    own = {"same": (like / sizes.clamp(min=1)[..., None, None] * members).sum(dim=1),
           "other": (others / n_others.clamp(min=1)[..., None, None] * members).sum(dim=1)}
    both = ((n_others > 0)[..., None, None] * members).sum(dim=1) > 0
    return Affinities(**own, known=both)


def noisy_pixels(found: Affinities, labels: torch.Tensor, *, share: float, n_classes: int) -> torch.Tensor:
    """Returns (B, H, W) bool: pixels among the `share` least like their class and among the `share` most like others.

    Shares are of the pixels of one class (B, H, W) in one image, so that no class is blamed for being small.
    """
    noisy = torch.zeros_like(found.known)
    for row in range(len(labels)):
        for k in range(n_classes):
            mine = found.known[row] & (labels[row] == k)
            if mine.any():
                same, other = found.same[row], found.other[row]
                low, high = same[mine].quantile(share), other[mine].quantile(1 - share)
                noisy[row] |= mine & (same < low) & (other > high)
    return noisy


def quality(found: Affinities) -> torch.Tensor:
    """Returns how well the labels of each image (B,) fit its features: the mean of same - other, 1 if nothing is known.
    """
    n = found.known.sum(dim=(1, 2))
    mean = ((found.same - found.other) * found.known).sum(dim=(1, 2)) / n.clamp(min=1)
    return torch.where(n > 0, mean, 1.0)


def ranks(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Returns the share (B,) of `among` (N,) that each of values (B,) is above, in [0, 1]; 1 where there is but one."""
    below = (among[None] < values[:, None]).sum(dim=1)
    return below / max(len(among) - 1, 1) if len(among) > 1 else torch.ones_like(values)


class Affinity(Settings):
    """Slot member `affinity`: noisy labels weigh less, then are replaced by what the labeller says there.

    Attributes:
        start: share of the run after which images weigh by the rank of their quality, from `least` to 1.
        relabel: share of the run after which noisy pixels of the worse half of the images are relabelled.
        share: of a class's pixels, from either end. name: whose features and word; null = the student's labeller.
    """

    start: float = Field(0.5, ge=0, le=1)
    relabel: float = Field(0.75, ge=0, le=1)
    share: float = Field(0.3, gt=0, lt=1)
    least: float = Field(0.4, ge=0, le=1)
    name: str | None = None

    def __call__(self, scene: Scene) -> Supervised:
        """Returns the supervised images with weights (B, H, W) and labels (B, H, W) mended; synthetic ones as they are.
        """
        given = scene.supervised
        if scene.progress < self.start or given.synthetic.all():
            return given
        seen = scene.said_of_supervised(self.name or scene.topology.labeller(scene.topology.branches[0]))
        found = affinities(seen.hidden, given.labels, scene.n_classes)
        rank = self._rank(scene, quality(found)).masked_fill(given.synthetic, 1.0)
        weight = (self.least + (1 - self.least) * rank)[:, None, None].expand(given.labels.shape)
        labels = given.labels
        if scene.progress >= self.relabel:
            noisy = noisy_pixels(found, labels, share=self.share, n_classes=scene.n_classes)
            noisy &= ((rank < 0.5) & ~given.synthetic)[:, None, None]
            scene.stats["relabelled"] = noisy.float().mean()
            labels = torch.where(noisy & (labels != IGNORE), top_class(seen.logits), labels)
        return replace(given, labels=labels, weight=weight if given.weight is None else weight * given.weight)

    def _rank(self, scene: Scene, values: torch.Tensor) -> torch.Tensor:
        rows, real = scene.supervised.rows, ~scene.supervised.synthetic
        told = torch.where(real, values, UNSEEN)
        all_rows, all_values = gathered(rows), gathered(told)
        memory = scene.memory.get("quality", values.new_zeros(0))
        grown = values.new_full((max(len(memory), int(all_rows.max()) + 1),), UNSEEN)
        grown[:len(memory)] = memory
        for row, value in zip(all_rows.tolist(), all_values, strict=True):  # the last word of a row that is there twice
            if value > UNSEEN:
                grown[row] = value
        scene.memory["quality"] = grown
        return ranks(values, grown[grown > UNSEEN])


AFFINITY: dict[str, type[Settings]] = {"affinity": Affinity}
"""Label policies of this module by the name that method files use."""
