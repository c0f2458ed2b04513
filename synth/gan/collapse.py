"""Has a translator collapsed? How many images it knows for one mask, and whether its judge knows the set by heart."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from synth.core.checks import UserError
from synth.core.rng import derive_seed
from synth.features import diversity, load_features
from synth.gan.recipe import TranslateRecipe
from synth.gan.settings import CollapseSettings
from synth.gan.translate import TranslatePipeline

log = logging.getLogger(__name__)

N_MASKS, N_SAMPLES = 8, 4
"""Masks that are drawn, and images of each."""
JUDGED = 16
"""Real images that the discriminator looks at together."""


@dataclass(frozen=True)
class Health:
    """What a fitted translator and its discriminator do.

    Attributes:
        diversity, real_diversity: perceptual distance between images of one mask, and between real images.
        diversity_ratio: the one over the other.
        sign_training, sign_held_aside, sign_drawn: mean sign of the discriminator, 1 = all real; Karras et al. 2020,
            eq. 1. None without pairs held aside.
        overfit: sign_training - sign_held_aside, from 0 (it knows real images in general) to 2 (it knows these).
        features: of the perceptual distance.
    """

    diversity: float
    real_diversity: float
    diversity_ratio: float
    sign_training: float
    sign_drawn: float
    sign_held_aside: float | None
    overfit: float | None
    features: str


@dataclass(frozen=True)
class Shown:
    """Real pairs: unit images (N, C, S, S), labels and frames (N, S, S), what these tell (N, T, S, S)."""

    images: torch.Tensor
    labels: torch.Tensor
    frames: torch.Tensor
    told: torch.Tensor


def _sign(recipe: TranslateRecipe, images: torch.Tensor, told: torch.Tensor) -> float:
    # A few at a time: a whole training set may be more than a device holds.
    signs = [recipe.judge(some.to(recipe.device), tells.to(recipe.device)).sign().mean((1, 2, 3)).cpu()
             for some, tells in zip(images.split(JUDGED), told.split(JUDGED), strict=True)]
    return float(torch.cat(signs).mean())


@torch.no_grad()
def measure_health(pipeline: TranslatePipeline, recipe: TranslateRecipe, training: Shown, held: Shown | None, *,
                   settings: CollapseSettings) -> Health:
    """Returns the health of a fitted translator on the pairs it was trained on, and on those held aside."""
    features = load_features(settings.features)
    spreads, first = [], []
    for i in range(min(N_MASKS, len(training.images))):
        again = slice(i, i + 1)
        drawn = pipeline.draw(training.labels[again].expand(N_SAMPLES, -1, -1),
                              seeds=[derive_seed(i, "health", k) for k in range(N_SAMPLES)],
                              keep_in=training.frames[again].expand(N_SAMPLES, -1, -1)).cpu()
        spreads.append(float(diversity(drawn, features)))
        first.append(drawn[0])
    real = float(diversity(training.images, features))

    mean, on_real = sum(spreads) / len(spreads), _sign(recipe, training.images, training.told)
    aside = None if held is None else _sign(recipe, held.images, held.told)
    return Health(mean, real, mean / real if real > 0 else 0.0, on_real,
                  _sign(recipe, torch.stack(first), training.told[:len(first)]), aside,
                  None if aside is None else on_real - aside, features.name)


def enforce_health(health: Health, limits: CollapseSettings) -> None:
    """Returns nothing if a translator draws several images for one mask; warns if its discriminator knows the set.

    Raises:
        UserError: naming the value, its limit, and what to change.
    """
    if not health.diversity_ratio >= limits.min_diversity:
        raise UserError(
            f"diversity_ratio={health.diversity_ratio:.3g}", rule="images drawn for one mask differ by less than "
            f"collapse.min_diversity={limits.min_diversity:g} of how real images differ: the translator has collapsed, "
            "and a thousand of its images say no more than one for each mask", repair="raise loss.response, lower "
            "loss.l1, raise discriminator.augment, train on more pairs, or take model=oasis")
    if health.overfit is not None and health.overfit > limits.max_overfit:
        log.warning("overfit=%.2g: the discriminator calls training images real (mean sign %.2f) and real images that "
                    "it never saw drawn (%.2f): it knows the set by heart. Repair: raise discriminator.augment, lower "
                    "loop.steps, or give more pairs.", health.overfit, health.sign_training, health.sign_held_aside)
