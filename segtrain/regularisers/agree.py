"""Terms on what two views of one image, seen by one branch or two, say of the same pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field

from segtrain.regularisers.pixels import features_at, head_of, logits_back, pick, place_of
from synth.core.config import Settings
from synth.core.space import top_class

if TYPE_CHECKING:
    from segtrain.scene import Scene


def mean_where(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Returns the mean (scalar) of values over `where` (both (B, H, W)); 0 if that is nowhere."""
    return (values * where).sum() / where.sum().clamp(min=1)


def overlap_kl(a: torch.Tensor, b: torch.Tensor, both: torch.Tensor, *, sharpness: float) -> torch.Tensor:
    """Returns KL(p_a || p_b) + sharpness (H(p_a) + H(p_b)) / 2, a scalar, mean over `both` (B, H, W), of logits.

    TraCoCo's translation consistency (Liu et al. 2022): both learn, and neither by becoming vague.
    """
    log_a, log_b = a.log_softmax(dim=1), b.log_softmax(dim=1)
    apart = (log_a.exp() * (log_a - log_b)).sum(dim=1)
    vague = -(log_a.exp() * log_a + log_b.exp() * log_b).sum(dim=1) / 2
    return mean_where(apart + sharpness * vague, both)


def one_minus_cosine(a: torch.Tensor, b: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """Returns 1 - cos(p_a, p_b) (scalar), mean over `both` (B, H, W), of the classes' probabilities that logits say."""
    return mean_where(1 - F.cosine_similarity(a.softmax(dim=1), b.softmax(dim=1), dim=1), both)


def agreement_nce(anchors: torch.Tensor, same: torch.Tensor, other: torch.Tensor, *, temperature: float
                  ) -> torch.Tensor:
    """Returns -log(sum_j e^(a s_j/T) / (sum_j e^(a s_j/T) + sum_k e^(a o_k/T))), a scalar, mean over anchors (N, D).

    0 if there are no anchors, nothing like them (M, D), or nothing unlike them (M', D).
    """
    if not (len(anchors) and len(same) and len(other)):
        return (anchors.sum() + same.sum() + other.sum()) * 0
    near, far = anchors @ same.T / temperature, anchors @ other.T / temperature
    return (torch.cat([near, far], dim=1).logsumexp(dim=1) - near.logsumexp(dim=1)).mean()


class OverlapKl(Settings):
    """Slot member `overlap_kl`: two views agree on the pixels that both show, each in its own context.

    Attributes:
        views: the two. sharpness: weight of the entropy.
    """

    views: tuple[int, int] = (0, 1)
    sharpness: float = Field(0.1, ge=0)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar) over the overlap, in the images' own coordinates."""
        (a, in_a), (b, in_b) = map(logits_back, scene.two_views(self.views))
        return overlap_kl(a, b, in_a & in_b, sharpness=self.sharpness)


class CosineAgreement(Settings):
    """Slot member `cosine_agreement`: C3S3's view consistency; `views` are the two."""

    views: tuple[int, int] = (0, 1)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar) over the pixels that both views show."""
        (a, in_a), (b, in_b) = map(logits_back, scene.two_views(self.views))
        return one_minus_cosine(a, b, in_a & in_b)


class Odcl(Settings):
    """Slot member `odcl`: C3S3's contrast of where two branches agree on foreground with where one alone sees it.

    Attributes:
        heads: projectors of the two branches' `hidden` features. views: the two. n: pixels of each kind and image.
    """

    heads: tuple[str, str] = ("a", "b")
    views: tuple[int, int] = (0, 1)
    n: int = Field(32, ge=1)
    temperature: float = Field(0.1, gt=0)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar), each branch's features against the other's."""
        shown = scene.two_views(self.views)
        size, rngs = tuple(shown[0].images.shape[-2:]), scene.rngs("odcl")
        (a, in_a), (b, in_b) = (logits_back(view) for view in shown)
        inside_a, inside_b, both = top_class(a) > 0, top_class(b) > 0, in_a & in_b
        picked = [pick(some & both, rngs, self.n) for some in (inside_a & inside_b, inside_a ^ inside_b)]
        sets = []
        for view, name in zip(shown, self.heads, strict=True):
            features, place = head_of(scene, name)(view.seen.hidden), place_of(view)[0].flatten(1)
            sets.append([features_at(features, place.gather(1, p.index), size)[p.found] for p in picked])
        (same_a, other_a), (same_b, other_b) = sets
        return (agreement_nce(same_a, same_b, other_b, temperature=self.temperature)
                + agreement_nce(same_b, same_a, other_a, temperature=self.temperature)) / 2


AGREE: dict[str, type[Settings]] = {"overlap_kl": OverlapKl, "cosine_agreement": CosineAgreement, "odcl": Odcl}
"""Regularisers of this module by the name that method files use."""
