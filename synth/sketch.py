"""The command `layouts`: random layouts of a labelled set, and a picture of them."""

from __future__ import annotations

from pathlib import Path

from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.core.shell import say
from synth.draw import DrawSettings, draw, draw_layouts
from synth.layouts import ShapeModel, learn_rules
from synth.show import save_grid


def sketch(labelled: PairSet, *, n: int, seed: int, size: int, out: Path, settings: DrawSettings,  # noqa: PLR0913
           shape: ShapeModel | None) -> None:
    """Writes n layouts into a folder and their grid beside it, and says which rules they keep.

    Layouts that change shape have no image: what is drawn there are the labels.

    Args:
        out: the picture; the pairs go into a folder of that name without .png.

    Raises:
        UserError: if `out` names no PNG, or as `draw_layouts`.
    """
    if out.suffix != ".png":
        raise UserError(f"out={out}", rule="it names a picture; the pairs go into a folder of that name without .png",
                        repair="write out=layouts.png")
    folder = out.with_suffix("")
    if settings.layout.is_free or shape is not None:
        made = draw_layouts(labelled, n=n, seed=seed, size=size, out=folder, config=settings, shape=shape)
    else:
        made = draw(None, labelled, n=n, seed=seed, size=size, out=folder, config=settings)
    if made is None:
        return
    save_grid(made, out)
    rules = learn_rules(labelled.arrays(size).masks, settings.layout.rules, n_classes=labelled.info.n_classes)
    for words in rules.words():
        say(f"rule: {words}")
    say(f"{out}: {len(made)} layouts; the pairs are in {folder}")
