"""The arms: what each one trains on beside the labelled images. Everything else is the same for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synth.core.checks import UserError

if TYPE_CHECKING:
    from segtrain.compare.data import Parts
    from segtrain.compare.settings import CompareData
    from segtrain.settings import SegmentSettings

ENGINES = ("inpaint", "translate")
"""Generators that a comparison fits; each is a group of its settings."""

SHUFFLED = "_shuffled"
"""Ends the kind of a control: a generator's images, each with the mask of another. It must hurt."""

KINDS: dict[str, str | None] = {
    "copypaste": None, "affine": None, "roundtrip": "inpaint", **{name: name for name in ENGINES},
    **{name + SHUFFLED: name for name in ENGINES}}
"""Kinds of synthetic pairs, and the generator that each needs.

copypaste is the same foregrounds on other real images; affine the transformed sources as they are; roundtrip those
through the generator's autoencoder, which adds nothing but its texture.
"""


@dataclass(frozen=True)
class Arm:
    """One condition: which synthetic pairs it adds, and whether it sees unlabelled images.

    Attributes:
        synthetic: one of `KINDS`, or several joined by "+": as many pairs in all, the same number of each kind.
        method: how it is trained; None = the comparison's `method` if it sees unlabelled images, else supervised.
    """

    name: str
    synthetic: str | None = None
    unlabelled: bool = False
    method: str | None = None


REAL = Arm("real")
"""Labelled images alone."""


BESIDE = {"stored": "real+unlabelled:external", "observers": "real:observers"}
"""Masks that may lie beside the images, and an arm that reads them."""


def parts_of(kind: str) -> tuple[str, ...]:
    """Returns the kinds that a joined one is made of; a plain one is made of itself."""
    return tuple(kind.split("+"))


def engines_of(kinds: Sequence[str]) -> tuple[str, ...]:
    """Returns the generators that `kinds` need, each once."""
    needed = (KINDS[part] for kind in kinds for part in parts_of(kind))
    return tuple(dict.fromkeys(engine for engine in needed if engine))


def arm_named(name: str) -> Arm:
    """Returns the arm `name`: real, then + and what it adds: kinds of synthetic pairs, "unlabelled", or both.

    "all" is short for real+inpaint+unlabelled. "ARM:METHOD" is that arm trained by another method of configs/methods.

    Raises:
        UserError: if there is no such arm or method, or the arm lacks the unlabelled images that the method needs.
    """
    base, colon, method = name.partition(":")
    first, *added = ("real+inpaint+unlabelled" if base == "all" else base).split("+")
    if first != "real" or len(set(added)) < len(added) or not set(added) <= {*KINDS, "unlabelled"}:
        raise UserError(f"arm {name}", rule="no such arm", repair="write real, and what it adds, e.g. real+inpaint+"
                        f"unlabelled; there are {', '.join((*KINDS, 'unlabelled'))}, and all")
    kinds = [word for word in added if word != "unlabelled"]
    arm = Arm(name, "+".join(kinds) or None, unlabelled="unlabelled" in added)
    if not colon:
        return arm
    from segtrain.method import load_method

    if load_method(method).needs("unlabelled") != arm.unlabelled:
        need = "needs" if not arm.unlabelled else "does not use"
        raise UserError(f"arm {name}", rule=f"{method} {need} unlabelled images",
                        repair=f"write {'real+unlabelled' if not arm.unlabelled else 'real'}:{method}")
    return dataclasses.replace(arm, method=method)


def method_of(arm: Arm, default: str) -> str:
    """Returns the method that `arm` is trained by; `default` is that of arms with unlabelled images."""
    return arm.method or (default if arm.unlabelled else "supervised")


def check_methods(arms: Sequence[Arm], default: str, segment: SegmentSettings, data: CompareData) -> None:
    """Returns nothing; raises if an arm could not be trained, so that no other is before that is found out.

    Raises:
        UserError: naming the method that there is not, that needs what a comparison has not, or that would not use the
            unlabelled images; or `data.stored` or `data.observers`, if no arm reads them.
    """
    from segtrain.method import load_method
    from segtrain.train import make_extras

    unread = {name for name in BESIDE if getattr(data, name)}
    for arm in arms:
        method = load_method(method_of(arm, default))
        given = {name: getattr(data, name) for name in BESIDE if method.needs(name)}
        make_extras(method, **given)
        unread -= given.keys()
        if arm.unlabelled and not (method.needs("unlabelled") or segment.augment.spectrum.needs_unlabelled):
            raise UserError(f"method={default}", rule=f"arm {arm.name} has unlabelled images and it does not use them",
                            repair="take method=fixmatch_ema, or drop the arm")
    if unread:
        name = min(unread)
        raise UserError(f"data.{name}", rule="no arm's method reads it", repair=f"leave it out, or add the arm "
                        f"{BESIDE[name]}")


def check_trainable(arms: Sequence[Arm], default: str, segment: SegmentSettings, parts: Parts) -> None:
    """Returns nothing; raises if a method's networks do not take the size of `segment`, or the labels of a draw do not
    suit a method: it holds out groups and there is one, or it learns from stacks and there is none.

    Raises:
        UserError: as the first run of that arm would, after others had been trained.
    """
    from segtrain.method import load_method
    from segtrain.recipe import SegmentRecipe
    from segtrain.streams.stacks import hold_out, windows

    for name in dict.fromkeys(method_of(arm, default) for arm in arms):
        method = load_method(name)
        try:
            SegmentRecipe(segment, method, info=parts.labelled.info, has_synthetic=False,
                          standard=None if segment.normalise == "range" else "image")
            for pairs in map(parts.labelled_of, parts.draws):
                rows, _ = hold_out(pairs.groups, method.held_out_share, segment.loop.seed)
                if method.stack > 1:
                    windows([pairs.ids[i] for i in rows], [pairs.groups[i] for i in rows], method.stack)
        except UserError as error:
            raise UserError(f"method {name}: {error.what}", rule=error.rule, repair=error.repair) from None


def choose_arms(names: Sequence[str], *, baseline: str, has_unlabelled: bool) -> tuple[Arm, ...]:
    """Returns the arms `names`, the baseline first.

    Raises:
        UserError: if a name is unknown or doubled, the baseline is missing, or an arm lacks its unlabelled images.
    """
    if len(set(names)) < len(names):
        raise UserError(f"arms {list(names)}", rule="an arm is named twice", repair="name each once")
    arm_named(baseline)
    arms = tuple(arm_named(name) for name in sorted(names, key=lambda n: n != baseline))
    if baseline not in names:
        raise UserError(f"baseline {baseline}", rule="it is not among the arms", repair="add it to arms")
    blind = [a.name for a in arms if a.unlabelled]
    if blind and not has_unlabelled:
        raise UserError(f"arm {blind[0]}", rule="it needs unlabelled images and there are none: every training image "
                        "is labelled", repair="give unlabelled images, lower n_labelled, or drop the arm")
    return arms
