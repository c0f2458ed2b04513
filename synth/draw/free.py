"""Layouts whose labels change shape, so that no source pixel matches them: where they may be drawn, and shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from synth.core.checks import IGNORE, UserError
from synth.core.pairs import Arrays
from synth.draw.painters import Painted
from synth.draw.sources import Sources
from synth.generator import KEEPS, Generator, draws_from_labels, mode_of
from synth.layouts import LayoutSettings, ShapeModel, Shapes

SHOWN = {"sampler": "labels", "mode": "layout"}
"""Sampler settings of pairs that show nothing but their labels."""


def check_layout(layout: LayoutSettings, generator: Generator | None, *, hosts: bool = False) -> None:
    """Returns nothing; raises if labels are to change shape and the pixels under them are kept from a source.

    Args:
        generator: None = nothing is painted, all is kept. One that only shows its source in another way (appearance,
            texture=redrawn) keeps no pixel either, but the shapes. hosts: objects are painted into images without any.

    Raises:
        UserError: naming the setting.
    """
    if not layout.is_free or hosts or (generator is not None and draws_from_labels(generator.sampler_settings())):
        return
    keeps = "everything" if generator is None else KEEPS[mode_of(generator.sampler_settings())]
    shown = "all of its source" if keeps == "nothing" else keeps
    name = ("layout.source=shape" if layout.source == "shape" else
            f"layout.grow_px={layout.grow_px:g} layout.bend_px={layout.bend_px:g}")
    raise UserError(name, rule="labels would change shape and the pixels under them would not: what is kept here is: "
                    f"{shown}", repair="take a generator that keeps nothing (a translator, or sampler.mode=layout of "
                    "one fitted with denoiser.labels=true), or leave these settings out")


def shapes_of(model: ShapeModel | None, layout: LayoutSettings, labelled: Arrays, *, size: int) -> Shapes | None:
    """Returns the model with the codes of `labelled` if layouts come from it, else None.

    Raises:
        UserError: if they shall and there is none, or it does not fit, or there is one that nothing would use; or if
            what it draws is told to grow or bend too, which nothing does.
    """
    if layout.source == "transform":
        if model is not None:
            raise UserError("shape", rule="layout.source=transform draws nothing from a shape model",
                            repair="write layout.source=shape, or leave the model to the gates")
        return None
    for name in ("grow_px", "bend_px"):
        if told := getattr(layout, name):
            raise UserError(f"layout.{name}={told:g}", rule="with layout.source=shape a model says where outlines run",
                            repair=f"leave layout.{name}= out, or write layout.source=transform")
    if model is None:
        raise UserError("layout.source=shape", rule="there is no shape model to draw from",
                        repair="fit one with synth fit configs/shape.yaml and give its folder as shape=")
    if model.size != size or len(model.classes) != labelled.info.n_classes or labelled.is_native:
        raise UserError("shape", rule=f"the model draws {len(model.classes)} classes at {model.size} px, wanted are "
                        f"{labelled.info.n_classes} at {'their own size' if labelled.is_native else f'{size} px'}",
                        repair=f"fit one on these labels with size={size}")
    return Shapes.of(model, labelled)


def label_painter(labelled: Arrays) -> Callable[[Sources], Painted]:
    """Returns the painter that shows the labels themselves, classes evenly spaced over the intensity range."""
    low, high = labelled.info.intensity_range
    levels = np.linspace(low, high, labelled.info.n_classes)

    def paint(sources: Sources) -> Painted:
        level = levels[np.where(sources.labels == IGNORE, 0, sources.labels)][:, None]
        pixels = np.broadcast_to(np.rint(level), sources.pixels.shape).astype(sources.pixels.dtype)
        return Painted(pixels, sources.labels, (None,) * len(sources.keys))

    return paint
