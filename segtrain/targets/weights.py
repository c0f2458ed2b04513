"""Operators on targets that weigh pixels, and the threshold that labelled images set."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from segtrain.targets.filters import confidence
from segtrain.targets.target import Target
from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.space import labels_to_onehot, top_class

if TYPE_CHECKING:
    from segtrain.scene import Scene


def deviation(prob: torch.Tensor, dae: nn.Module) -> torch.Tensor:
    """Returns half the squared distance (B, H, W), in [0, 1], of prob (B, K, H, W) from the nearest plausible mask.

    That is what the auto-encoder makes of the most probable classes (Adiga et al. 2024, section 3.2). Half the sum over
    the classes: with two classes it is the square of the foreground's difference, the paper's form.
    """
    plausible = dae(labels_to_onehot(top_class(prob), prob.shape[1])).float().softmax(dim=1)
    return 0.5 * (plausible - prob).square().sum(dim=1)


class Anatomy(Settings):
    """Slot member `anatomy`: weight e^(-gamma u), u = `deviation` of the target from a mask that the head finds
    plausible."""

    head: str = "dae"
    gamma: float = Field(1.0, ge=0)

    def __call__(self, target: Target, scene: Scene | None) -> Target:
        """Returns `target` with its weights (B, H, W) lowered where it shows no anatomy."""
        if scene is None:
            return target
        with torch.no_grad():
            weight = (-self.gamma * deviation(target.prob, scene.head(self.head))).exp()
        return replace(target, weight=target.weight * weight, stats={**target.stats, "plausible": weight.mean()})


class ConfidenceWeight(Settings):
    """Slot member `confidence_weight`: weight c^gamma, c the largest probability (Tarubinga et al. 2025)."""

    gamma: float = Field(1.0, ge=0)

    def __call__(self, target: Target, scene: Scene | None) -> Target:
        """Returns `target` with its weights (B, H, W) times c^gamma."""
        return replace(target, weight=target.weight * target.prob.amax(dim=1).pow(self.gamma))


class Neighbours(Settings):
    """Slot member `neighbours`: a share of each pixel's probabilities is the mean of the 3 x 3 pixels around it."""

    share: float = Field(0.5, ge=0, le=1)

    def __call__(self, target: Target, scene: Scene | None) -> Target:
        """Returns `target` with blended probabilities (B, K, H, W)."""
        around = F.avg_pool2d(target.prob, 3, stride=1, padding=1, count_include_pad=False)
        return replace(target, prob=(1 - self.share) * target.prob + self.share * around)


def above_mean(target: Target, *, tau: float) -> Target:
    """Returns `target` with only those pixels valid whose largest probability is at least min(tau, its image's mean).

    The mean of an image lies between its least and its most certain pixel, so something is dropped and something kept
    unless all pixels are alike or the mean is above `tau`, where `tau` decides.
    """
    certain = target.prob.amax(dim=1)
    return target.narrowed(certain >= certain.mean(dim=(1, 2), keepdim=True).clamp(max=tau))


class Calibrated(Settings):
    """Slot member `calibrated`: the threshold `tau` where the labeller deserves it, else an adaptive floor.

    It deserves it if pi = Pr[right | c >= tau] >= tau on labelled images that were held out (CW-BASS, second version).
    The published code's own threshold stays within 0.30 and 0.34, which with two classes drops nothing; the floor here
    is `above_mean`.

    Attributes:
        decay: of the counts behind pi, per step. name: who is tested; null = the first branch's labeller.
    """

    tau: float = Field(0.95, gt=0, lt=1)
    decay: float = Field(0.99, ge=0, lt=1)
    name: str | None = None
    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    def __call__(self, target: Target, scene: Scene | None) -> Target:
        """Returns `target` narrowed by the threshold that pi calls for; logs pi and which it was.

        Raises:
            UserError: if `tau` is one that every pixel passes, or there are no held-out images.
        """
        strict = confidence(target, tau=self.tau)
        if scene is None:
            return target
        if "pi" not in scene.stats:  # counted once a step, whatever asks
            self._count(scene)
        return strict if scene.stats["strict"] else above_mean(target, tau=self.tau)

    def _count(self, scene: Scene) -> None:
        if "calibration_images" not in scene.batch:
            raise UserError("calibrated", rule="there are no held-out labelled images to be calibrated on",
                            repair="write held_out_share: 0.05 into the method file")
        name = self.name or scene.topology.labeller(scene.topology.branches[0])
        prob = scene.topology.teacher(scene.batch["calibration_images"], name).logits.float().softmax(dim=1)
        labels = scene.batch["calibration_labels"]
        certain = (prob.amax(dim=1) >= self.tau) & (labels != IGNORE)
        right = certain & (top_class(prob) == labels)
        counts = torch.stack([right.sum(), certain.sum()]).double()
        counts = self.decay * scene.memory.get("calibration", torch.zeros_like(counts)) + counts
        scene.memory["calibration"] = counts
        # Who is never certain has shown nothing: pi is 0.
        pi = counts[0] / counts[1].clamp_min(1e-12)
        scene.stats["pi"], scene.stats["strict"] = pi.float(), (pi >= self.tau).float()


WEIGHTS: dict[str, type[Settings]] = {"anatomy": Anatomy, "confidence_weight": ConfidenceWeight,
                                      "neighbours": Neighbours, "calibrated": Calibrated}
"""Operators of this module by the name that method files use."""
