"""Who trains, who is labelled, who is tested: by group, from seeds and names alone, never from the order of files."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from synth.core.checks import UserError
from synth.core.pairs import ImageSet
from synth.core.rng import derive_seed

log = logging.getLogger(__name__)

MAX_REDRAWS = 100


@dataclass(frozen=True)
class Member:
    """One image of a set, as far as a split needs it."""

    id: str
    group: str
    foreground: bool = True


@dataclass(frozen=True)
class TestSplit:
    """Ids of the training part, of the test part, and of those left out (images of a test group past the cap)."""

    training: tuple[str, ...]
    test: tuple[str, ...]
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelDraw:
    """Ids that one draw labels, and the rest of the training part, whose masks it hides.

    Attributes:
        redrawn: why earlier attempts were thrown away, one line each.
    """

    index: int
    labelled: tuple[str, ...]
    hidden: tuple[str, ...]
    redrawn: tuple[str, ...] = ()


def _by_group(members: Iterable[Member]) -> dict[str, list[Member]]:
    groups: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda m: m.id):
        groups.setdefault(member.group, []).append(member)
    return groups


def split_test(members: Sequence[Member], *, seed: int, share: float, cap: int | None = None) -> TestSplit:
    """Returns the split in which whole groups, in an order drawn from `seed`, are tested until `share` is reached.

    With a `cap`, testing stops there; what is left of the last test group is used for nothing.

    Raises:
        UserError: if there are fewer than two groups.
    """
    groups = _by_group(members)
    if len(groups) < 2:
        raise UserError(f"group {next(iter(groups))}", rule="all images are of one group, and a group is trained on or "
                        "tested on, never both", repair="add images of other groups, or give a test= folder")
    order = sorted(groups, key=lambda g: derive_seed(seed, "test", g))
    wanted = min(math.ceil(share * len(members)), cap or len(members))
    test: list[str] = []
    training = list(order)
    while len(test) < wanted and len(training) > 1:
        test += [m.id for m in groups[training.pop(0)]]
    keep = test[:cap] if cap else test
    rest = sorted(m.id for g in training for m in groups[g])
    return TestSplit(tuple(rest), tuple(sorted(keep)), tuple(sorted(set(test) - set(keep))))


def draw_labels(members: Sequence[Member], *, seed: int, draw: int, budget: int,
                n_groups: int | None = None) -> LabelDraw:
    """Returns label draw `draw`: groups in a drawn order until `budget` images are labelled, the last group trimmed;
    or, with `n_groups`, all images of that many groups.

    A larger budget labels all that a smaller one does (the draws are nested), as long as neither had to be redrawn
    for want of foreground.

    Raises:
        UserError: if the training part is smaller than the budget, or no draw shows any foreground.
    """
    groups, redrawn = _by_group(members), []
    for name, wanted, there in (("n_labelled", budget, len(members)), ("n_groups", n_groups or 0, len(groups))):
        if wanted > there:
            kind = "images" if name == "n_labelled" else "groups"
            raise UserError(f"{name}={wanted}", rule=f"the training part holds only {there} {kind}",
                            repair="ask for fewer, or lower split.test_share")
    for attempt in range(MAX_REDRAWS):
        line = _line_up(groups, seed, draw, attempt)
        first = list(dict.fromkeys(m.group for m in line))[:n_groups]
        n = sum(len(groups[g]) for g in first) if n_groups else budget
        if any(m.foreground for m in line[:n]):
            hidden = sorted(m.id for m in line[n:])
            return LabelDraw(draw, tuple(sorted(m.id for m in line[:n])), tuple(hidden), tuple(redrawn))
        redrawn.append(f"label draw {draw}, attempt {attempt + 1}: no foreground in {n} images, drawn again")
        log.warning(redrawn[-1])
    raise UserError(f"n_labelled={budget}", rule=f"no foreground in any of {MAX_REDRAWS} label draws",
                    repair="label images that show the structure, or raise n_labelled")


def _line_up(groups: dict[str, list[Member]], seed: int, draw: int, attempt: int) -> list[Member]:
    key = ("labels", draw, attempt)
    # Each draw begins with another group: where groups are few, independent draws would often label the same images.
    first = sorted(groups, key=lambda g: derive_seed(seed, "first", attempt, g))[draw % len(groups)]
    order = sorted(groups, key=lambda g: (g != first, derive_seed(seed, *key, g)))
    return [m for g in order for m in sorted(groups[g], key=lambda m: derive_seed(seed, *key, "in", m.id))]


def check_disjoint(training: ImageSet, test: ImageSet) -> None:
    """Returns nothing; raises if a group of `test` is in `training`, also as the parent of a synthetic pair.

    Raises:
        UserError: naming the group and the training pair.
    """
    held_out = set(test.groups)
    for item in training.items:
        for group in (item.group, *(item.made.parent_groups if item.made else ())):
            if group in held_out:
                raise UserError(f"{training.where}: {item.id}", rule=f"its group {group} is also in the test set "
                                f"{test.where}", repair="remove it from one of them, or give true groups in groups.csv")
