"""Has a fit without labels learnt what it was meant to? Polarity, collapse, bias of place, hidden texture."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from synth.core.checks import UserError
from synth.core.rng import sample_rng
from synth.core.space import labels_to_onehot, top_class
from synth.gan.unpaired.settings import UnpairedHealth

log = logging.getLogger(__name__)

MAX_PERMUTED = 6
"""Classes up to which every exchange of them is looked at."""


@dataclass(frozen=True)
class Health:
    """What the labels of the real images look like beside the masks, and what the translators do with them.

    Attributes:
        distance: mean absolute difference of area, border and centre of the classes. exchanged: the exchange of classes
            under which it is smallest, class of the label for each class of the masks. exchanged_distance: with it.
        area_labels, area_masks, border_labels, border_masks: share of the pixels, and of the image's border, per class.
        alike_labels, alike_masks: mean Dice of the foregrounds of two of them.
        place_labels, place_masks: mean Dice with what most masks show: what a fixed guess is worth.
        error_own: L1 of the image drawn from its own label, error_other: from another image's, error_smooth: from its
            own, smoothed. mask_use: own / other, below 1 where the drawn image follows its label. hidden: smooth / own.
        energy_labels, energy_masks: mean energies. weight: mean weight of the images.
        diversity_ratio: perceptual distance of images drawn from one mask, as a share of that of real images.
    """

    distance: float
    exchanged: tuple[int, ...]
    exchanged_distance: float
    area_labels: tuple[float, ...]
    area_masks: tuple[float, ...]
    border_labels: tuple[float, ...]
    border_masks: tuple[float, ...]
    alike_labels: float
    alike_masks: float
    place_labels: float
    place_masks: float
    error_own: float
    error_other: float
    error_smooth: float
    mask_use: float
    hidden: float
    energy_labels: float
    energy_masks: float
    weight: float
    diversity_ratio: float


def class_statistics(labels: torch.Tensor, *, n_classes: int) -> torch.Tensor:
    """Returns area, share of the image's border, and centre (row, column) of each class of labels (N, S, S), (K, 4).

    All in [0, 1]; the centre of a class that is nowhere is the middle. Ignored pixels do not count.
    """
    onehot = labels_to_onehot(labels, n_classes).double().mean(0)
    side = torch.linspace(0, 1, labels.shape[-1], dtype=torch.float64)
    rim = torch.zeros(labels.shape[-2:], dtype=torch.bool)
    rim[[0, -1]], rim[:, [0, -1]] = True, True
    total = onehot.sum((1, 2))
    centre = [torch.where(total > 0, (onehot.sum(axis) * side).sum(1) / total.clamp(min=1e-12), 0.5) for axis in (2, 1)]
    return torch.stack([onehot.mean((1, 2)), onehot[:, rim].mean(1), *centre], 1)


def find_exchange(labels: torch.Tensor, masks: torch.Tensor) -> tuple[float, tuple[int, ...], float]:
    """Returns how far two sets' class statistics (K, 4) lie apart, the exchange that brings them nearest, how far then.

    An inverted labeller is the exchange (1, 0): what it calls foreground has the background's area and borders.
    """
    n = len(masks)
    exchanges = itertools.permutations(range(n)) if n <= MAX_PERMUTED else [tuple(range(n))]
    apart = {order: float((labels[list(order)] - masks).abs().mean()) for order in exchanges}
    nearest = min(apart, key=lambda order: (apart[order], order))
    return apart[tuple(range(n))], nearest, apart[nearest]


def _dice(a: torch.Tensor, b: torch.Tensor) -> float:
    # Mean Dice of foregrounds (N, S, S) bool; two empty ones are alike.
    both, each = (a & b).sum((1, 2)).double(), (a.sum((1, 2)) + b.sum((1, 2))).double()
    return float(torch.where(each > 0, 2 * both / each.clamp(min=1), 1.0).mean())


def alike(labels: torch.Tensor) -> float:
    """Returns the mean Dice of the foregrounds of labels (N, S, S) with those of others among them."""
    there = (labels > 0) & (labels != 255)
    turned = [there.roll(shift, 0) for shift in range(1, min(len(labels), 6))]
    return sum(_dice(there, other) for other in turned) / max(1, len(turned))


def place(labels: torch.Tensor, masks: torch.Tensor) -> float:
    """Returns the mean Dice of labels (N, S, S) with the foreground that most of the masks (M, S, S) show."""
    there, usual = (labels > 0) & (labels != 255), ((masks > 0) & (masks != 255)).float().mean(0)
    # Where the masks lie so far apart that no pixel is foreground in half of them, the best guess has their mean area.
    usual = usual >= min(0.5, float(usual.flatten().quantile(1 - float(usual.mean()))))
    return _dice(there, usual.expand_as(there))


def smooth(labels: torch.Tensor, *, n_classes: int) -> torch.Tensor:
    """Returns labels (N, S, S) in which each pixel has the class that leads among the 5 x 5 pixels around it.

    Shapes survive it; single pixels and checkerboards, in which an image could be hidden, do not: binomial votes, since
    in a plain count over an odd window a checkerboard wins everywhere.
    """
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = torch.outer(row, row).expand(n_classes, 1, 5, 5)
    padded = F.pad(labels_to_onehot(labels, n_classes), (2, 2, 2, 2), mode="replicate")
    return top_class(F.conv2d(padded, kernel, groups=n_classes))


def other_rows(n: int, *, seed: int) -> list[int]:
    """Returns another row for each of n rows: all of them, in a turned random order."""
    order = torch.randperm(n, generator=sample_rng(seed, "others")).tolist()
    other = [0] * n
    for a, b in zip(order, order[1:] + order[:1], strict=True):
        other[a] = b
    return other


def enforce_health(health: Health, limits: UnpairedHealth, classes: Sequence[str]) -> None:
    """Returns nothing if the labels can be used; warns of what a person should look at.

    Raises:
        UserError: if classes are exchanged (an inverted labeller), or all images have the same label.
    """
    straight = tuple(range(len(health.exchanged)))
    if health.exchanged != straight and health.distance - health.exchanged_distance > limits.swap_margin:
        told = ", ".join(f"what it calls {classes[b]} has the area and place of {classes[a]}"
                         for a, b in enumerate(health.exchanged) if a != b)
        raise UserError(f"exchanged={health.exchanged}", rule=f"the labels are inverted: {told} "
                        f"(distance {health.distance:.2g}, exchanged {health.exchanged_distance:.2g})",
                        repair="another loop.seed, a larger loss.shape, or more masks; if it is right as it is, raise "
                        "health.swap_margin")
    if health.alike_labels - health.alike_masks > limits.max_alike:
        raise UserError(f"alike_labels={health.alike_labels:.2g}", rule="the labels of different images are nearly the "
                        f"same (masks: {health.alike_masks:.2g}): the labeller does not look", repair="lower "
                        "loss.shape, raise loss.cycle_mask, or give masks that differ more")
    for value, limit, text in (
            (health.distance, limits.max_distance, "distance=%.2g: the labels' areas and places are far from the "
             "masks'. Look at them; the masks may be of other structures or other fields of view."),
            (health.place_labels - health.place_masks, limits.max_place, "place_labels - place_masks=%.2g: the labels "
             "lie where the masks usually lie more than the masks do themselves: a bias of place. Repair: raise "
             "layout.shift."),
            (health.hidden, limits.max_hidden, "hidden=%.2g: smoothing the labels spoils the images drawn from them, "
             "so something is hidden in their texture. Repair: raise loss.noise.")):
        if value > limit:
            log.warning(text, value)
