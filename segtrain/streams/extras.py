"""What some methods want of the streams beside images and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Extras:
    """By default nothing.

    Attributes:
        inputs: names of further forms of the unlabelled images.
        held_out_share: of the labelled images, kept out of training in whole groups, to calibrate on.
        stack: so many neighbouring slices of a group are drawn together; 1 = images by themselves.
        stored: folder of pseudo-labels of the unlabelled images.
        observers: folders of further annotators' masks of the labelled images.
        whole: whether something is remembered of each unlabelled image, for which it must be seen whole.
    """

    inputs: tuple[str, ...] = ()
    held_out_share: float = 0.0
    stack: int = 1
    stored: str | Path | None = None
    observers: Sequence[str | Path] = ()
    whole: bool = False


NOTHING = Extras()
