"""Everything one training step has before it: what slots of a method may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from segtrain.models import Features, Seen
from segtrain.settings import AugmentSettings, GeometrySettings
from segtrain.targets.target import Target, from_labels
from segtrain.topology import Topology
from segtrain.transforms.spectral import Beside
from segtrain.transforms.warps import Stay, Warp
from segtrain.views.weak import augment_pairs, weak
from synth.core.checks import UserError
from synth.core.loop import Batch
from synth.core.rng import sample_rng
from synth.core.space import top_class
from synth.spectral import FrequencyPrior

if TYPE_CHECKING:
    from segtrain.transforms.bands import Band


@dataclass(frozen=True)
class Supervised:
    """Labelled and synthetic images of a step, augmented.

    Attributes:
        images: unit (B, C, H, W). labels: (B, H, W), 255 = ignore. weight: of the pixels (B, H, W), or None.
        synthetic: (B,) bool. rows: (B,), which image of its set each is; a synthetic one's follow the labelled ones'.
        seeds: (B,) int, of everything random about each. prob: labels as probabilities (B, K, H, W), zero in every
            class = ignore, or None. observers: several annotators' labels (B, O, H, W), or None.
    """

    images: torch.Tensor
    labels: torch.Tensor
    synthetic: torch.Tensor
    rows: torch.Tensor
    seeds: tuple[int, ...]
    weight: torch.Tensor | None = None
    prob: torch.Tensor | None = None
    observers: torch.Tensor | None = None


@dataclass
class Shown:
    """One view: what a branch is shown of some images, and what it shall predict there.

    Attributes:
        branch: who sees it. images: unit (B, C, H, W). warp: where their pixels came from. target: moved alike.
        perturb: of the features, or None. seen: what the branch saw, once it has looked. of: which images they are,
            "unlabelled" or "supervised".
    """

    branch: str
    images: torch.Tensor
    warp: Warp
    target: Target
    perturb: Callable[[Features], Features] | None = None
    seen: Seen | None = None
    of: str = "unlabelled"


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
        stats: scalars to log. w_syn: weight of a synthetic image beside a labelled one's 1.
        prior: frequency prior of the run, or None.
        probe: whether operators narrow a target of labelled images, to see how right they are, which nothing shall
            remember.
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
    w_syn: float = 1.0
    prior: FrequencyPrior | None = None
    probe: bool = False
    _said: dict[str, Seen] = field(default_factory=dict)
    _made: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)

    def augment(self, settings: AugmentSettings) -> None:
        """Augments the supervised images and all labels of them, each by its own seed; does nothing without any."""
        if not len(self.supervised.images):
            return
        given, others = self.supervised, self.supervised.observers
        labels = given.labels if others is None else torch.cat([given.labels[:, None], others], dim=1)
        images, labels = augment_pairs(given.images, labels, self.supervised_rngs("pair"), settings)
        labels, others = (labels, None) if others is None else (labels[:, 0], labels[:, 1:])
        images = settings.spectrum.of(images, self.supervised_rngs, self.beside())
        self.supervised = replace(given, images=images, labels=labels, observers=others)

    def beside(self) -> Beside:
        """Returns what changes of amplitudes may look at: the prior, and the step's images as they were read."""
        return Beside(self.prior, self.batch["images"], self.batch.get("unlabelled"))

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

    def head(self, name: str) -> nn.Module:
        """Returns the head `name`.

        Raises:
            UserError: if the method has none of that name.
        """
        if name not in self.heads:
            raise UserError(f"head {name}", rule="the method has no such head", repair="name it under heads:")
        return self.heads[name]

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

    def once(self, key: str, make: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        """Returns what `make` returned, of any shape, when `key` was first asked for in this step.

        So views share what costs forwards.
        """
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def supervised_target(self) -> Target:
        """Returns the target (B, K, H, W) that the supervised images' labels are, a synthetic one's weight `w_syn`."""
        given = self.supervised
        target = from_labels(given.labels, self.n_classes)
        if given.prob is not None:
            valid = given.prob.sum(dim=1) > 0
            target = Target(given.prob, top_class(given.prob), valid.float(), valid)
        weight = target.weight * torch.where(given.synthetic, self.w_syn, 1.0)[:, None, None]
        return replace(target, weight=weight if given.weight is None else weight * given.weight)

    def said_of_form(self, name: str, *, form: str | None = None, band: Band | None = None) -> Seen:
        """Returns what an average or branch says of a further form, or of one band, of the clean unlabelled images.

        No gradient, looked at once. Without `form` and `band` it is `said(name)`.

        Raises:
            UserError: if the streams made no such form.
        """
        if form is not None and form not in self.inputs:
            raise UserError(f"input {form}", rule="the streams made no such form of the images",
                            repair=f"take one of {', '.join(self.inputs) or 'none'}")
        if form is None and band is None:
            return self.said(name)
        key = f"{name} of {form} {band}"
        if key not in self._said:
            images = self.clean if form is None else self.inputs[form]
            self._said[key] = self.topology.teacher(images if band is None else band.of(images), name)
        return self._said[key]

    def said_of_view(self, name: str, index: int) -> Seen:
        """Returns what an average or branch says of what view `index` shows: no gradient, looked at once.

        Raises:
            UserError: if there is no such view.
        """
        key = f"{name} of view {index}"
        if key not in self._said:
            self._said[key] = self.topology.teacher(self.view(index).images, name)
        return self._said[key]

    def view(self, index: int) -> Shown:
        """Returns the view `index` of this step.

        Raises:
            UserError: if there is no such view.
        """
        if not 0 <= index < len(self.shown):
            raise UserError(f"view {index}", rule=f"this phase shows {len(self.shown)} views, counted from 0",
                            repair="name one of them, and let a term ramp if its views do")
        return self.shown[index]

    def two_views(self, indices: tuple[int, int]) -> tuple[Shown, Shown]:
        """Returns two views of the same images, for terms that compare them.

        Raises:
            UserError: if there is no such view, or one shows unlabelled images and the other supervised ones.
        """
        a, b = (self.view(index) for index in indices)
        if a.of != b.of:
            raise UserError(f"views {list(indices)}", rule=f"the term compares two views of one image, and one is of "
                            f"{a.of}, the other of {b.of} images", repair="name two views of the same images")
        return a, b

    def seen_by(self, branch: str) -> Seen:
        """Returns what a branch saw of the supervised images.

        Raises:
            UserError: if this phase does not look at them.
        """
        if branch not in self.seen:
            raise UserError(f"branch {branch}", rule="a term reads what it says of the labelled images, and this phase "
                            "does not show them", repair="give the phase supervised: 1, or drop the term")
        return self.seen[branch]
