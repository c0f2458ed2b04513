"""Everything one training step has before it: what slots of a method may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from segtrain.models import Features, Seen
from segtrain.settings import AugmentSettings, GeometrySettings
from segtrain.targets.target import Target
from segtrain.topology import Topology
from segtrain.views.weak import augment_pairs, weak
from segtrain.warps import Stay, Warp
from synth.core.loop import Batch
from synth.core.rng import sample_rng


@dataclass(frozen=True)
class Supervised:
    """Labelled and synthetic images of a step, augmented.

    Attributes:
        images: unit (B, C, H, W). labels: (B, H, W), 255 = ignore. weight: of the pixels (B, H, W), or None.
        synthetic: (B,) bool. rows: (B,), which image of its set each is; a synthetic one's follow the labelled ones'.
        seeds: (B,) int, of everything random about each.
    """

    images: torch.Tensor
    labels: torch.Tensor
    synthetic: torch.Tensor
    rows: torch.Tensor
    seeds: tuple[int, ...]
    weight: torch.Tensor | None = None


@dataclass
class Shown:
    """One view: what a branch is shown of some images, and what it shall predict there.

    Attributes:
        branch: who sees it. images: unit (B, C, H, W). warp: where their pixels came from. target: moved alike.
        perturb: of the features, or None. seen: what the branch saw, once it has looked.
    """

    branch: str
    images: torch.Tensor
    warp: Warp
    target: Target
    perturb: Callable[[Features], Features] | None = None
    seen: Seen | None = None


@dataclass
class Scene:
    """One step.

    Attributes:
        step, progress, n_steps: where the run is; `progress` is the share of the phase done.
        n_classes: K. topology, heads: the networks. memory: tensors that outlive a step and are saved with the run.
        batch: as the streams gave it. supervised: its labelled part.
        clean: weakly augmented unlabelled images, unit (U, C, H, W), or None; `warp` moved them there. seeds: of each.
        inputs: further forms of the same images, moved alike, by name.
        seen: what each branch saw of the supervised images. shown: the views.
        stats: scalars to log.
    """

    step: int
    progress: float
    n_steps: int
    n_classes: int
    topology: Topology
    heads: Mapping[str, nn.Module]
    memory: dict[str, torch.Tensor]
    batch: Batch
    supervised: Supervised
    clean: torch.Tensor | None = None
    warp: Warp = field(default_factory=Stay)
    seeds: tuple[int, ...] = ()
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)
    stats: dict[str, torch.Tensor] = field(default_factory=dict)
    _said: dict[str, Seen] = field(default_factory=dict)

    def augment(self, settings: AugmentSettings) -> None:
        """Augments the supervised images and labels, each by its own seed."""
        given = self.supervised
        images, labels = augment_pairs(given.images, given.labels, self.supervised_rngs("pair"), settings)
        self.supervised = replace(given, images=images, labels=labels)

    def show_clean(self, geometry: GeometrySettings) -> None:
        """Moves the unlabelled images, and every further form of them, by their weak view."""
        self.seeds = tuple(self.batch["unlabelled_seeds"].tolist())
        self.clean, self.warp = weak(self.batch["unlabelled"], self.rngs("weak"), geometry)
        for key, images in self.batch.items():
            if key.startswith("input_"):
                self.inputs[key.removeprefix("input_")] = self.warp.move(images, nearest=False)

    def rngs(self, *names: str | int) -> list[torch.Generator]:
        """Returns one generator per unlabelled image, for the purpose that `names` says."""
        return [sample_rng(seed, *names) for seed in self.seeds]

    def supervised_rngs(self, *names: str | int) -> list[torch.Generator]:
        """Returns one generator per supervised image, for the purpose that `names` says."""
        return [sample_rng(seed, *names) for seed in self.supervised.seeds]

    def said(self, name: str) -> Seen:
        """Returns what an average or branch says of the clean unlabelled images: no gradient, looked at once."""
        if name not in self._said:
            self._said[name] = self.topology.teacher(self.clean, name)
        return self._said[name]

    def said_of_supervised(self, name: str) -> Seen:
        """Returns what an average or branch says of the supervised images: no gradient, looked at once."""
        key = f"supervised {name}"
        if key not in self._said:
            self._said[key] = self.topology.teacher(self.supervised.images, name)
        return self._said[key]
