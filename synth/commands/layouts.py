"""The command `layouts`: random layouts of a labelled set, and a picture of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from synth.commands.data import load_labelled, take_data
from synth.core.checks import UserError
from synth.core.config import load_config, to_yaml
from synth.core.data import DataSettings
from synth.core.pairs import PairSet
from synth.core.shell import required, say, take, take_number
from synth.draw import DrawSettings, draw, draw_layouts
from synth.draw.judges import load_shape
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


def _check(settings: DrawSettings, data: DataSettings) -> None:
    """Returns nothing; raises a UserError for what layouts alone have no use for: nobody paints, judges or chooses."""
    plain = DrawSettings()
    told = {"data.unlabelled=": data.unlabelled, "supply.": settings.supply != plain.supply,
            **{f"{name}=": getattr(settings, name) != getattr(plain, name)
               for name in ("repaint_share", "appearance_share", "window")},
            **{f"{name}.": getattr(settings, name) != getattr(plain, name) for name in ("curate", "clear")}}
    for name, there in told.items():
        if there:
            raise UserError(f"synth layouts {name}", rule="layouts are drawn, and nothing is painted, judged or chosen",
                            repair=f"leave {name} out")


def run_layouts(overrides: Sequence[str], *, dry_run: bool) -> None:
    """Runs `synth layouts`.

    Raises:
        UserError: for unknown settings, and as `sketch`.
    """
    data, rest = take_data(overrides)
    n, rest = take_number(rest, "n", 32)
    seed, rest = take_number(rest, "seed", 0)
    size, rest = take_number(rest, "size", 64)
    out, rest = take(rest, "out")
    shape_dir, rest = take(rest, "shape")
    settings = load_config(DrawSettings, None, rest)
    _check(settings, data)
    if dry_run:
        say(f"n: {n}\nseed: {seed}\nsize: {size}\nout: {out}\nshape: {shape_dir}\ndata:\n"
            + indent(to_yaml(data), "  ") + to_yaml(settings).rstrip())
        return
    labelled = load_labelled(data)
    sketch(labelled, n=n, seed=seed, size=size, out=Path(required(out, "out", "layouts.png")), settings=settings,
           shape=load_shape(shape_dir, labelled, size=size))
