"""A look into a method's steps, after the branches have looked and before anything is learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from scenes import PAIRS, SETTINGS, extras_of

from segtrain.method import Method, load_method
from segtrain.models import Seen
from segtrain.recipe import SegmentRecipe
from segtrain.scene import Scene, Shown
from segtrain.settings import SegmentSettings
from segtrain.streams import Streams
from segtrain.targets import from_prob
from segtrain.transforms.warps import Stay, Warp
from synth.core.loop import Batch
from synth.core.pairs import PairSet


def started(method: Method | str, *, settings: SegmentSettings = SETTINGS, pairs: PairSet = PAIRS
            ) -> tuple[SegmentRecipe, Callable[[int], Batch]]:
    """Returns a method's recipe, untrained, and its batches of `pairs`, labelled and unlabelled."""
    method = load_method(method)
    recipe = SegmentRecipe(settings, method, info=pairs.info, has_synthetic=False)
    streams = Streams.read(settings, pairs, unlabelled=pairs, extras=extras_of(method))
    return recipe, lambda step: streams.batches(step, 0, 1)


def watch(recipe: SegmentRecipe, batches: Callable[[int], Batch], look: Callable[[Scene], object], *, n_steps: int = 1,
          first: int = 0) -> list:
    """Returns what `look` returns of each step's scene, before that step's update."""
    found, extra = [], recipe._extra

    def looked(scene: Scene, *rest: object) -> object:
        found.append(look(scene))
        return extra(scene, *rest)

    recipe._extra = looked
    for step in range(first, first + n_steps):
        recipe.step(batches(step), step / recipe.settings.loop.steps)
    recipe._extra = extra
    return found


def with_logits(shown: Shown, logits: torch.Tensor, warp: Warp | None = None) -> Shown:
    """Returns the view as if its branch had said `logits` (B, K, H, W), perhaps with another warp."""
    seen = replace(shown.seen, logits=logits)
    return replace(shown, seen=seen, warp=warp or shown.warp)


def unit(*numbers: int, n: int = 4) -> torch.Tensor:
    """Returns one-hot directions (B, n)."""
    return torch.eye(n)[list(numbers)]


def show(scene: Scene, logits: torch.Tensor, n: int = 2) -> Scene:
    """Returns the scene with `n` unmoved views in which all is said to be `logits` (B, K, H, W)."""
    shown = Shown("student", scene.clean, Stay(), from_prob(logits.softmax(1)), None, Seen(logits, logits, logits))
    scene.shown = [shown] * n
    return scene
