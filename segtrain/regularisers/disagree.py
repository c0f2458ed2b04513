"""RAIL's terms on the pixels where two branches disagree; at each step one branch learns from them, in turn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field

from segtrain.regularisers.agree import mean_where
from segtrain.regularisers.pixels import logits_back
from segtrain.targets.rank import best_branch
from synth.core.checks import IGNORE
from synth.core.config import Settings
from synth.core.space import labels_to_onehot, top_class

if TYPE_CHECKING:
    from segtrain.scene import Scene


def kl_to_uniform(logits: torch.Tensor) -> torch.Tensor:
    """Returns KL(p || uniform) = ln K - H(p) (B, H, W), nats, of logits (B, K, H, W)."""
    log = logits.log_softmax(dim=1)
    return math.log(logits.shape[1]) + (log.exp() * log).sum(dim=1)


def disagreement(student: torch.Tensor, best: torch.Tensor, labels: torch.Tensor, *, mse: float, kl: float
                 ) -> torch.Tensor:
    """Returns RAIL's disagreement-focused supervision (scalar) of the student's logits (B, K, H, W).

    `mse` times the mean squared difference of probabilities to the labels where its class is not the best one's, plus
    `kl` times KL(label || p) where it is also wrong; labels are (B, H, W), 255 = ignored. `best` is (B, K, H, W).
    """
    student, said = student.float(), top_class(student)
    differ = (labels != IGNORE) & (said != top_class(best))
    squared = (student.softmax(dim=1) - labels_to_onehot(labels, student.shape[1])).square().mean(dim=1)
    losses = F.cross_entropy(student, labels, ignore_index=IGNORE, reduction="none")
    return mse * mean_where(squared, differ) + kl * mean_where(losses, differ & (said != labels))


def _whose_turn(scene: Scene) -> str:
    branches = scene.topology.branches
    return branches[scene.step % len(branches)]


class LabelledDisagreement(Settings):
    """Slot member `labelled_disagreement`: the branch whose turn it is learns labels once more where it differs from
    the best one.

    Attributes:
        mse, kl: weights of the two parts. alpha: share of the cross-entropy in how well a branch does.
    """

    mse: float = Field(0.5, ge=0)
    kl: float = Field(0.05, ge=0)
    alpha: float = Field(0.0, ge=0, le=1)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns the loss (scalar) over the supervised images; 0 for the best branch itself."""
        names = _whose_turn(scene), best_branch(scene, alpha=self.alpha)
        student, best = (scene.seen_by(name).logits for name in names)
        return disagreement(student, best, scene.supervised.labels, mse=self.mse, kl=self.kl)


class UniformDisagreement(Settings):
    """Slot member `uniform_disagreement`: the branch whose turn it is becomes less sure where another disagrees.

    Attributes:
        views: one of each branch, in their order.
    """

    views: tuple[int, int] = (0, 1)

    def __call__(self, scene: Scene) -> torch.Tensor:
        """Returns KL(p || uniform) where the views' classes differ (scalar), mean over the pixels both show.

        Over all of these pixels, so that the term fades as the branches come to agree.
        """
        shown = scene.two_views(self.views)
        (a, in_a), (b, in_b) = (logits_back(view) for view in shown)
        learner = a if shown[0].branch == _whose_turn(scene) else b
        differ = top_class(a) != top_class(b)
        return mean_where(kl_to_uniform(learner) * differ, in_a & in_b)


DISAGREE: dict[str, type[Settings]] = {
    "labelled_disagreement": LabelledDisagreement, "uniform_disagreement": UniformDisagreement,
}
"""Regularisers of this module by the name that method files use."""
