"""Targets of several opinions: networks heard by how sure they are, and what was said of the same image before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from segtrain.ranks import gathered
from segtrain.targets.filters import sharpen
from segtrain.targets.rank import entropy_of
from segtrain.targets.target import Target, from_prob
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene

LEVELS = 255
"""A probability of 1, as it is stored."""


def entropy_vote(probs: torch.Tensor) -> torch.Tensor:
    """Returns sum_m c_m p_m / sum_m c_m (B, K, H, W), c_m = 1 - H(p_m) / ln K, of opinions p (M, B, K, H, W).

    SPARSE (CMIG 2026), whose code leaves the denominator out. Where nobody is sure of anything, their mean.
    """
    if len(probs) == 1:
        return probs[0]
    sure = (1 - torch.stack([entropy_of(prob) for prob in probs]) / math.log(probs.shape[2])).clamp_min(0)
    total = sure.sum(dim=0)
    voted = (sure[:, :, None] * probs).sum(dim=0) / total.clamp_min(1e-6)[:, None]
    return torch.where((total > 1e-6)[:, None], voted, probs.mean(dim=0))


class WeightedVote(Settings):
    """Slot member `weighted_vote`: what several networks say, each pixel by how sure each is.

    Attributes:
        names: who; none named = all branches. temperature: of every opinion beforehand; above 1 it is less sure.
    """

    names: tuple[str, ...] = ()
    temperature: float = Field(1.0, gt=0)

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) that they say of the clean images."""
        return from_prob(vote(scene, self.names or scene.topology.branches, temperature=self.temperature))


def vote(scene: Scene, names: tuple[str, ...], *, temperature: float) -> torch.Tensor:
    """Returns `entropy_vote` (U, K, H, W) of what networks say of the clean images, each at a temperature."""
    said = [from_prob(scene.said(name).logits.float().softmax(dim=1)) for name in names]
    if temperature != 1:
        said = [sharpen(target, temperature=temperature) for target in said]
    return entropy_vote(torch.stack([target.prob for target in said]))


@dataclass(frozen=True)
class Ensemble:
    """Averages of what was said of images, pixel by pixel.

    Attributes:
        prob: (U, K, H, W). n: of how many steps (U, H, W), 255 = that or more; 0 = nothing is known there.
    """

    prob: torch.Tensor
    n: torch.Tensor

    def decay(self, beta: float) -> torch.Tensor:
        """Returns the share (U, H, W) that the average keeps at its next step: min(beta, n / (n + 1))."""
        n = self.n.float()
        return (n / (n + 1)).clamp(max=beta)

    def after(self, prob: torch.Tensor, *, beta: float) -> torch.Tensor:
        """Returns the average (U, K, H, W) once `prob` (U, K, H, W) is part of it; `prob` where nothing was known."""
        return prob + self.decay(beta)[:, None] * (self.prob - prob)


def _stored(scene: Scene, key: str) -> torch.Tensor:
    # Levels and counts (U, K + 1, H, W), uint8, of the step's unlabelled images, in their own coordinates.
    shape = (1 + scene.n_classes, *scene.clean.shape[-2:])
    nothing = torch.zeros(shape, dtype=torch.uint8)
    rows = scene.batch["unlabelled_rows"].tolist()
    return torch.stack([scene.memory.get(f"{key} {row}", nothing) for row in rows]).to(scene.clean.device)


def recalled(scene: Scene, key: str) -> Ensemble:
    """Returns what the memory holds under `key` of the step's unlabelled images, in their own coordinates."""
    stored = _stored(scene, key)
    prob = stored[:, :-1].float()
    return Ensemble(prob / prob.sum(dim=1, keepdim=True).clamp_min(1), stored[:, -1])


def in_view(scene: Scene, known: Ensemble) -> Ensemble:
    """Returns an ensemble moved as the weak view moved the images; unknown where the view shows what is beyond them."""
    there = known.n > 0
    share = scene.warp.move(there.float(), nearest=False)[:, None].clamp_min(1e-6)
    prob = scene.warp.move(known.prob * there[:, None], nearest=False) / share
    return Ensemble(prob, scene.warp.move(known.n, nearest=True) * scene.warp.known(there))


def remember(scene: Scene, key: str, prob: torch.Tensor, *, beta: float) -> None:
    """Takes `prob` (U, K, H, W), said of the weak view, into what the memory holds of the images under `key`.

    Rounding is up or down at random, by each image's own seed, and right on average: with beta = .99 the nearest of 256
    levels would never move for a difference below .2.
    """
    back, seen = scene.warp.back(prob, torch.ones_like(prob[:, 0], dtype=torch.bool))
    old = _stored(scene, key)
    average = LEVELS * recalled(scene, key).after(back, beta=beta)
    dither = torch.stack([torch.rand(average.shape[1:], generator=rng) for rng in scene.rngs("remember", key)])
    levels = (average + dither.to(average.device)).floor().clamp(0, LEVELS)
    new = torch.cat([levels, (old[:, -1:].float() + 1).clamp(max=255)], dim=1).to(torch.uint8)
    entries = torch.where(seen[:, None], new, old)
    rows = gathered(scene.batch["unlabelled_rows"].to(entries.device)).tolist()
    for row, entry in zip(rows, gathered(entries).cpu(), strict=True):  # the last word of a row that is there twice
        scene.memory[f"{key} {row}"] = entry.clone()  # a view would keep its whole batch alive


def follow(scene: Scene, key: str, prob: torch.Tensor, *, beta: float) -> tuple[Ensemble, torch.Tensor]:
    """Returns what was known of the images before this step, in the weak view, and the average (U, K, H, W) after it.

    `prob` (U, K, H, W), said of the weak view, is then remembered: one average for each image, K + 1 bytes a pixel, in
    the CPU's memory and the checkpoint.
    """
    moved = in_view(scene, recalled(scene, key))
    remember(scene, key, prob, beta=beta)
    scene.stats["remembered"] = (moved.n > 0).float().mean()
    return moved, moved.after(prob, beta=beta)


class Temporal(WeightedVote):
    """Slot member `temporal`: a share of what networks say now, the rest the average of what they said of each image.

    SPARSE's temporal ensemble, whose code starts it anew for every batch, for whole segmentations: the average is in
    the coordinates of the un-augmented image, to which the weak view's moves are undone. Its first steps are a plain
    mean, as in `synth.core.ema`. With beta = 0 nothing earlier is left in it, and the target is the vote.

    Attributes:
        names: who; none named = who labels for the branch. share: of now. beta: of the average, per look at an image.
    """

    share: float = Field(0.6, ge=0, le=1)
    beta: float = Field(0.99, ge=0, le=0.995)
    needs: ClassVar[tuple[str, ...]] = ("whole",)

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) for the clean images; views that ask alike share one average."""
        names = self.names or (scene.topology.labeller(branch),)
        key = f"temporal {' '.join(names)} {self.temperature:g} {self.beta:g}"
        now, average = scene.once(key, lambda: self._look(scene, names, key))
        return from_prob(now + (1 - self.share) * (average - now))

    def _look(self, scene: Scene, names: tuple[str, ...], key: str) -> tuple[torch.Tensor, torch.Tensor]:
        now = vote(scene, names, temperature=self.temperature)
        return now, follow(scene, key, now, beta=self.beta)[1]


ENSEMBLE: dict[str, type[Settings]] = {"weighted_vote": WeightedVote, "temporal": Temporal}
"""Sources of this module by the name that method files use."""
