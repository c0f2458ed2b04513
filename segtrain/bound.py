"""A method's views, regularisers and phases with their members looked up, ready to be called by the recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from segtrain.losses import LOSSES
from segtrain.losses.deep import loss_of_levels
from segtrain.method import Phase, Step, View, member
from segtrain.models import Features
from segtrain.regularisers import REGULARISERS
from segtrain.scene import Scene, Shown
from segtrain.targets import SOURCES, TARGETS, Target
from segtrain.transforms.warps import ChainWarp, Rngs
from segtrain.views import FEATURE_PERTURBATIONS, PERTURBATIONS


def members(registry: dict, steps: tuple[Step, ...], slot: str) -> list:
    """Returns the members of `registry` that `steps` name, with their settings."""
    return [member(registry, step, slot) for step in steps]


class BoundView:
    """The members that one view names, ready to call."""

    def __init__(self, view: View, branch: str) -> None:
        self.of, self.input, self.weight, self.ramp = view.of, view.input, view.weight, view.ramp
        self.branch = view.branch or branch
        self.source = member(SOURCES, view.source, "source")
        self.target = members(TARGETS, view.target, "target")
        self.perturb = members(PERTURBATIONS, view.perturb, "perturb")
        self.features = view.features and member(FEATURE_PERTURBATIONS, view.features, "features")
        self.loss = view.loss and member(LOSSES, view.loss, "loss")
        self.brings_labels = view.brings_labels()

    def narrow(self, target: Target, scene: Scene | None) -> Target:
        """Returns what the operators make of `target`, one after another."""
        for operator in self.target:
            target = operator(target, scene)
        return target

    def show(self, scene: Scene, index: int) -> Shown:
        """Returns the view: its images perturbed, row by row of its own generator, and its target moved alike."""
        supervised = self.of == "supervised"
        images = scene.supervised.images if supervised else scene.inputs.get(self.input, scene.clean)
        rngs: Callable[..., Rngs] = scene.supervised_rngs if supervised else scene.rngs
        with torch.no_grad():
            target = self.narrow(self.source(scene, self.branch), scene)
            warps = []
            for i, perturb in enumerate(self.perturb):
                images, warp = perturb(images, rngs("view", index, i), scene)
                warps.append(warp)
        warp = ChainWarp(tuple(warps))
        draws = getattr(self.features, "draws", index)  # members that name their draws draw alike for every view
        features = self.features and partial(self._features, rngs=rngs("features", draws))
        return Shown(self.branch, images, warp, warp.apply(target), features, of=self.of)

    def loss_of(self, shown: Shown) -> torch.Tensor:
        """Returns the view's loss (scalar); labels teach every level of a decoder with deep supervision here too."""
        if self.brings_labels:
            return loss_of_levels(self.loss, shown.seen, shown.target)
        return self.loss(shown.seen.logits, shown.target)

    def _features(self, features: Features, rngs: Rngs) -> Features:
        return self.features(features, rngs)


@dataclass
class BoundTerm:
    """A regulariser, ready to call."""

    name: str
    call: Callable[[Scene], torch.Tensor]
    weight: float
    ramp: bool


class BoundPhase:
    """A phase, its members ready to call."""

    def __init__(self, phase: Phase, start: float, branch: str) -> None:
        self.start, self.until, self.supervised = start, phase.until, phase.supervised
        self.lambda_u, self.views = phase.lambda_u, [BoundView(view, branch) for view in phase.views]
        self.terms = [BoundTerm(t.use.name, member(REGULARISERS, t.use, "regulariser"), t.weight, t.ramp)
                      for t in phase.regularisers]

    def progress(self, progress: float) -> float:
        """Returns the share of this phase that is done when `progress` of the run is."""
        return (progress - self.start) / (self.until - self.start)
