"""Which classes lie inside, beside or away from each other: learnt from how label maps touch, or given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field
from scipy import ndimage

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings

SLACK = 0.1
"""How much less of its outline than `quantile` of the real maps show may touch the class around it."""

Ordered = tuple[int, int]


class RuleSettings(Settings):
    """Where classes lie; a layout that breaks a rule which its parents keep is drawn again.

    Attributes:
        learn: find rules in the label maps, beside those that are given.
        inside: pairs (a, b), a lies inside b: [[3, 2]]. touching: pairs that lie side by side. apart: pairs that never
            touch.
        quantile: share of the label maps that may fail what is learnt from them.
        least: share of the outline of a that must touch b for "inside" to be learnt.
        min_maps: label maps that must show both classes before anything is learnt of them.
    """

    learn: bool = True
    inside: tuple[Ordered, ...] = ()
    touching: tuple[Ordered, ...] = ()
    apart: tuple[Ordered, ...] = ()
    quantile: float = Field(0.05, ge=0, lt=0.5)
    least: float = Field(0.6, gt=0.5, le=1)
    min_maps: int = Field(4, ge=1)


@dataclass(frozen=True)
class Rules:
    """Containment and neighbourhood of classes.

    Attributes:
        inside: (a, b) -> share of the outline of a that must touch b, where a is there.
        touching: pairs that touch wherever both are there. apart: pairs that never touch.
    """

    inside: Mapping[Ordered, float] = field(default_factory=dict)
    touching: frozenset[Ordered] = frozenset()
    apart: frozenset[Ordered] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return not (self.inside or self.touching or self.apart)

    def broken(self, labels: np.ndarray) -> frozenset[str]:
        """Returns the rules that labels (H, W) break, each in words; a class that is not there breaks none."""
        there = {int(k) for k in np.unique(labels)} - {0, IGNORE}
        if not there or self.is_empty:
            return frozenset()
        contact, faults = contacts(labels), set()
        for (a, b), least in self.inside.items():
            if a in there and _share(contact, a, b) < least:
                faults.add(f"{a} inside {b}")
        for a, b in self.touching:
            if {a, b} <= there and not contact[a, b]:
                faults.add(f"{a} touching {b}")
        for a, b in self.apart:
            if {a, b} <= there and contact[a, b]:
                faults.add(f"{a} apart from {b}")
        return frozenset(faults)

    def words(self) -> list[str]:
        """Returns one line for each rule."""
        return [*(f"{a} inside {b} ({share:.2f} of its outline)" for (a, b), share in self.inside.items()),
                *(f"{a} touching {b}" for a, b in sorted(self.touching)),
                *(f"{a} apart from {b}" for a, b in sorted(self.apart))]


def contacts(labels: np.ndarray) -> np.ndarray:
    """Returns how many pixel sides of class a in labels (H, W) touch class b, (256, 256), symmetric, its diagonal 0."""
    counts = np.zeros((256, 256), np.int64)
    for one, other in ((labels[:-1], labels[1:]), (labels[:, :-1], labels[:, 1:])):
        differ = one != other
        np.add.at(counts, (one[differ], other[differ]), 1)
    return counts + counts.T


def _share(contact: np.ndarray, a: int, b: int) -> float:
    outline = contact[a, :IGNORE].sum()
    # All of the image: no outline that could touch anything else.
    return contact[a, b] / outline if outline else 1.0


def learn_rules(masks: Iterable[np.ndarray], settings: RuleSettings, *, n_classes: int) -> Rules:
    """Returns the rules that label maps (H, W) keep, all but `quantile` of them, with those that `settings` give.

    Raises:
        UserError: if a given rule names a class that there is not.
    """
    _check(settings, n_classes)
    inside: dict[Ordered, float] = {}
    touching, apart = set(), set()
    if settings.learn and n_classes > 2:
        seen = [(contacts(mask), {int(k) for k in np.unique(mask)} - {0, IGNORE}) for mask in masks]
        for a in range(1, n_classes):
            for b in range(1, n_classes):
                with_a = [(c, there) for c, there in seen if a in there]
                both = [c for c, there in with_a if b in there]
                if a == b or len(both) < settings.min_maps:
                    continue
                share = float(np.quantile([_share(c, a, b) for c, _ in with_a], settings.quantile))
                if share >= settings.least:
                    inside[a, b] = max(share - SLACK, 0.5)
                touch = float(np.mean([c[a, b] > 0 for c in both]))
                if a < b and touch >= 1 - settings.quantile:
                    touching.add((a, b))
                elif a < b and touch == 0:
                    apart.add((a, b))
    given = {pair: max(inside.get(pair, 0), settings.least) for pair in settings.inside}
    return Rules({**inside, **given}, frozenset(touching | set(settings.touching)),
                 frozenset(apart | set(settings.apart)))


def _check(settings: RuleSettings, n_classes: int) -> None:
    for name in ("inside", "touching", "apart"):
        for pair in getattr(settings, name):
            if pair[0] == pair[1] or not all(0 < k < n_classes for k in pair):
                raise UserError(f"rules.{name} {list(pair)}", rule=f"a rule is of two classes among 1..{n_classes - 1}",
                                repair="name classes by their index in dataset.json")


def thickness(labels: np.ndarray, inner: int, outer: int) -> float:
    """Returns how thick `outer` is around `inner` in labels (H, W), px: the 10 % quantile along the inner outline."""
    core = labels == inner
    whole = core | (labels == outer)
    if not core.any() or whole.all():
        return float("inf")
    depth = ndimage.distance_transform_edt(whole)
    rim = core & ~ndimage.binary_erosion(core, border_value=1)
    return float(np.quantile(depth[rim if rim.any() else core], 0.1)) - 1
