"""One step of a packaged method, laid open: what its views show, to whom, with which target."""

from __future__ import annotations

import torch
from scenes import PAIRS, SETTINGS, run
from torch import nn

from segtrain.method import load_method
from segtrain.models import SegNet
from segtrain.priors import find_prior
from segtrain.recipe import SegmentRecipe
from segtrain.scene import Scene
from segtrain.streams import Streams


def stage(name: str, progress: float = 0.0, *, n_trained: int = 0) -> tuple[SegmentRecipe, Scene]:
    """Returns a recipe and a step's scene at `progress`, its views shown and looked at, nothing updated."""
    method = load_method(name)
    recipe = run(method, n_trained)[0] if n_trained else SegmentRecipe(SETTINGS, method, info=PAIRS.info,
                                                                       has_synthetic=False,
                                                                       prior=find_prior(SETTINGS, method, PAIRS))
    batch = Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS).batches(0, 0, 1)
    phase = next(phase for phase in recipe.phases if progress < phase.until)
    scene = recipe._scene(batch, phase.progress(progress), phase.views, [])
    scene.shown = [view.show(scene, i) for i, view in enumerate(phase.views)]
    recipe._look(scene, phase)
    return recipe, scene


def loss_of(recipe: SegmentRecipe, scene: Scene, i: int, progress: float = 0.0) -> torch.Tensor:
    """Returns the unweighted loss (scalar) of the i-th view."""
    phase = next(phase for phase in recipe.phases if progress < phase.until)
    return phase.views[i].loss(scene.shown[i].seen.logits, scene.shown[i].target)


def insist(net: SegNet, class_index: int, *, decoder: int = 0, logit: float = 8.0) -> None:
    """Makes one decoder of a two-class network say one class everywhere, surely but with a gradient."""
    with torch.no_grad():
        bias = net.heads[decoder].conv.bias
        bias.zero_().view(2, 4)[class_index] = logit  # pixel shuffle: four values of each class


def has_gradient(module: nn.Module) -> bool:
    """Returns whether any parameter got a gradient that is not zero."""
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
