"""Several annotators' labels of one image: one of them at random, the majority, or the share that says each class."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.space import labels_to_onehot

if TYPE_CHECKING:
    from segtrain.scene import Scene, Supervised
    from segtrain.transforms.warps import Rngs


def shares(observers: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Returns which share (B, K, H, W) of the observers (B, O, H, W) says each class; zero where all are 255."""
    counts = torch.stack([labels_to_onehot(one, n_classes) for one in observers.unbind(dim=1)]).sum(dim=0)
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def vote(observers: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Returns the class (B, H, W) that most of the observers (B, O, H, W) say; 255 where two classes tie, or none does.

    A tie is nobody's verdict: to give it to the lower class would shrink every object that two observers draw.
    """
    best, labels = shares(observers, n_classes).topk(2, dim=1)
    return labels[:, 0].masked_fill(best[:, 0] <= best[:, 1], IGNORE)


def draw_observers(rngs: Rngs, n: int) -> torch.Tensor:
    """Returns whom each image (B,) believes this time, out of `n`."""
    return torch.stack([torch.randint(n, (), generator=rng) for rng in rngs])


def apply_observers(observers: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
    """Returns the labels (B, H, W) that observer `who` (B,) of (B, O, H, W) gave each image."""
    return observers[torch.arange(len(observers), device=observers.device), who.to(observers.device)]


def _of(scene: Scene, policy: str) -> torch.Tensor:
    if scene.supervised.observers is None:
        raise UserError(f"labels {policy}", rule="it wants several observers' masks and the batch has none",
                        repair="pass observers= (data.observers on the command line)")
    return scene.supervised.observers


class Sample(Settings):
    """Slot member `sample`: every time an image is seen, one of its observers, at random."""

    needs: ClassVar[tuple[str, ...]] = ("observers",)

    def __call__(self, scene: Scene) -> Supervised:
        """Returns the supervised images with one observer's labels (B, H, W) each."""
        observers = _of(scene, "sample")
        who = draw_observers(scene.supervised_rngs("observer"), observers.shape[1])
        return replace(scene.supervised, labels=apply_observers(observers, who))


class Vote(Settings):
    """Slot member `vote`: what most observers say, pixel by pixel."""

    needs: ClassVar[tuple[str, ...]] = ("observers",)

    def __call__(self, scene: Scene) -> Supervised:
        """Returns the supervised images with the majority's labels (B, H, W)."""
        return replace(scene.supervised, labels=vote(_of(scene, "vote"), scene.n_classes))


class MeanLabels(Settings):
    """Slot member `mean`: the share of observers that says each class, as soft labels of the supervised loss."""

    needs: ClassVar[tuple[str, ...]] = ("observers",)

    def __call__(self, scene: Scene) -> Supervised:
        """Returns the supervised images with probabilities (B, K, H, W), and the majority's labels beside them."""
        observers = _of(scene, "mean")
        return replace(scene.supervised, labels=vote(observers, scene.n_classes),
                       prob=shares(observers, scene.n_classes))


OBSERVERS: dict[str, type[Settings]] = {"sample": Sample, "vote": Vote, "mean": MeanLabels}
"""Label policies of this module by the name that method files use."""
