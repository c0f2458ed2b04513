"""Targets made of several answers: noisy passes of one network, the other branches, the other views of an image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from segtrain.models.segnet import Features
from segtrain.targets.filters import sharpen
from segtrain.targets.target import Target, from_prob, soft
from segtrain.transforms.featurewise import draw_uniform, drop
from segtrain.transforms.noise import NoiseSettings, bounded_noise
from segtrain.transforms.turns import TurnSettings, turned, turned_back
from synth.core.checks import UserError
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene

VARIANCE_FLOOR = 1e-6


class PassSettings(NoiseSettings):
    """Noisy passes through a network that does not learn from them.

    Attributes:
        passes: how many. dropout: share of the encoder's coarsest values that are 0; where it is not 0, the network's
            own dropout layers work too.
    """

    passes: int = Field(8, ge=1, le=64)
    dropout: float = Field(0.5, ge=0, lt=1)


def noisy_passes(scene: Scene, name: str, images: torch.Tensor, settings: PassSettings) -> torch.Tensor:
    """Returns probabilities (T, U, K, H, W) of T noisy passes of unit images (U, C, H, W) through a network."""
    found = []
    for i in range(settings.passes):
        rngs = scene.rngs("pass", name, i)
        noisy = images + bounded_noise(images.shape[1:], rngs, settings, images.device)

        def perturb(features: Features, rngs: list[torch.Generator] = rngs) -> Features:
            coarse = features[-1:]
            return [*features[:-1], *drop(coarse, draw_uniform(coarse, rngs), p=settings.dropout)]

        seen = scene.topology.teacher(noisy, name, perturb=perturb if settings.dropout else None,
                                      dropout=settings.dropout > 0)
        found.append(seen.logits.float().softmax(dim=1))
    return torch.stack(found)


class Noisy(PassSettings):
    """Slot member `noisy`: the mean of noisy passes of the branch's labeller, or of the network `name`."""

    name: str | None = None

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) that it says of the clean images."""
        return from_prob(noisy_passes(scene, self.name or scene.topology.labeller(branch), scene.clean, self).mean(0))


class Others(Settings):
    """Slot member `others`: the mean of what all other branches say, each sharpened by `temperature` (null = not)."""

    temperature: float | None = Field(0.1, gt=0, le=1)

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) that they say of the clean images.

        Raises:
            UserError: if there is no other branch.
        """
        said = [soft(scene.said(name).logits) for name in scene.topology.branches if name != branch]
        if not said:
            raise UserError("source others", rule=f"{branch} is the only branch", repair="take a topology of several, "
                            "or another source")
        if self.temperature is not None:
            said = [sharpen(target, temperature=self.temperature) for target in said]
        return from_prob(torch.stack([target.prob for target in said]).mean(dim=0))


def inverse_variance_mean(probs: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """Returns sum_j u_j p_j / sum_j u_j with u_j = 1 / variance_j, pixel by pixel (UMCT, Xia et al. 2020).

    Args:
        probs: (N, B, K, H, W). variances: (N, B, H, W), of which those below 1e-6 count as that.
    """
    u = 1 / variances.clamp_min(VARIANCE_FLOOR)[:, :, None]
    return (u * probs).sum(dim=0) / u.sum(dim=0)


class OtherViews(PassSettings):
    """Slot member `other_views`: what the other branches say of their own turn of the image, the surer the louder.

    Attributes:
        turns: by branch, the turn of the image that it is shown.
    """

    turns: dict[str, TurnSettings] = Field(min_length=2)

    def _said(self, scene: Scene, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        turn = self.turns[name]
        passes = noisy_passes(scene, name, turned(scene.clean, turn), self)
        return turned_back(passes.mean(0), turn), turned_back(passes.var(0, correction=0).mean(1), turn)

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W), turned back to the clean images."""
        key = self.model_dump_json()
        said = [scene.once(f"{name} {key}", lambda name=name: self._said(scene, name))
                for name in self.turns if name != branch]
        probs, variances = (torch.stack(part) for part in zip(*said, strict=True))
        return from_prob(inverse_variance_mean(probs, variances))


def entropy_bound(target: Target, *, share: float) -> Target:
    """Returns `target` with only those pixels valid whose entropy is below `share` of ln K; logs the share kept."""
    entropy = -torch.special.xlogy(target.prob, target.prob).sum(dim=1)
    return target.narrowed(entropy < share * math.log(target.prob.shape[1]))


class EntropyBound(Settings):
    """Slot member `entropy_bound`: UA-MT's filter, its bound grown from `low` to `high` of ln K by the exp ramp.

    The largest entropy of K classes is ln K. The published code has ln 2, right for its two classes only.

    Attributes:
        length: share of the phase over which it grows.
    """

    low: float = Field(0.75, gt=0, le=1)
    high: float = Field(1.0, gt=0, le=1)
    length: float = Field(1.0, gt=0, le=1)

    def __call__(self, target: Target, scene: Scene | None) -> Target:
        """Returns `entropy_bound` of the target at the scene's progress."""
        left = 1 - min(scene.progress / self.length, 1) if scene else 0
        return entropy_bound(target, share=self.low + (self.high - self.low) * math.exp(-5 * left**2))


class Weigh(Settings):
    """Slot member `weigh`: every pixel's weight times `factor`."""

    factor: float = Field(0.5, gt=0)

    def __call__(self, target: Target, scene: Scene) -> Target:
        """Returns the target with other weights."""
        return replace(target, weight=target.weight * self.factor)


STUDENT_SOURCES: dict[str, type[Settings]] = {"noisy": Noisy, "others": Others, "other_views": OtherViews}
"""Sources of this module by the name that method files use."""

STUDENT_FILTERS: dict[str, type[Settings]] = {"entropy_bound": EntropyBound, "weigh": Weigh}
"""Operators of this module by the name that method files use."""
