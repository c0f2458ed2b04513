"""The arms: what each one trains on beside the labelled images. Everything else is the same for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from synth.core.checks import UserError


@dataclass(frozen=True)
class Arm:
    """One condition: which synthetic pairs it adds, and whether it sees unlabelled images.

    Attributes:
        synthetic: "inpaint"; or a control: "copypaste" (the same foregrounds on other real images), "affine" (the
            transformed sources as they are), "roundtrip" (those through the generator's autoencoder, which adds nothing
            but its texture), "inpaint_shuffled" (the painted images, each with the mask of another: it must hurt).
        method: how it is trained; None = the comparison's `method` if it sees unlabelled images, else supervised.
    """

    name: str
    synthetic: Literal["copypaste", "inpaint", "inpaint_shuffled", "roundtrip", "affine"] | None = None
    unlabelled: bool = False
    method: str | None = None


ARMS = {arm.name: arm for arm in (
    Arm("real"),
    Arm("real+copypaste", synthetic="copypaste"),
    Arm("real+inpaint", synthetic="inpaint"),
    Arm("real+unlabelled", unlabelled=True),
    Arm("all", synthetic="inpaint", unlabelled=True),
    Arm("real+affine", synthetic="affine"),
    Arm("real+roundtrip", synthetic="roundtrip"),
    Arm("real+inpaint_shuffled", synthetic="inpaint_shuffled"),
)}


def arm_named(name: str) -> Arm:
    """Returns the arm `name`; "ARM:METHOD" is that arm trained by another method of configs/methods.

    Raises:
        UserError: if there is no such arm or method, or the arm lacks the unlabelled images that the method needs.
    """
    base, colon, method = name.partition(":")
    if base not in ARMS:
        raise UserError(f"arm {name}", rule="no such arm", repair=f"choose among {', '.join(ARMS)}")
    arm = ARMS[base]
    if not colon:
        return arm
    from segtrain.method import load_method

    if load_method(method).needs("unlabelled") != arm.unlabelled:
        need = "needs" if not arm.unlabelled else "does not use"
        raise UserError(f"arm {name}", rule=f"{method} {need} unlabelled images",
                        repair=f"write {'real+unlabelled' if not arm.unlabelled else 'real'}:{method}")
    return dataclasses.replace(arm, name=name, method=method)


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
