"""What `draw` is held against: its sources on other images, or through an autoencoder. And layouts without images."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from synth.core.config import load_config
from synth.core.pairs import ImageSet, PairSet
from synth.core.taught import joined
from synth.diffusion.inpaint import blend_alpha
from synth.draw.flow import Before, check_fit, check_request, check_size, claim_draw, is_native, run_draw, window_of
from synth.draw.free import SHOWN, check_layout, label_painter, shapes_of
from synth.draw.painters import clear_backgrounds, paste_painter, roundtrip_painter
from synth.draw.settings import CopyPasteSettings, DrawSettings
from synth.draw.shards import Origin, stems_of
from synth.gates.gates import Predict
from synth.generator import Generator
from synth.layouts import ShapeModel


def draw_layouts(  # noqa: PLR0913 - as `draw`
    labelled: PairSet, *, n: int, seed: int = 0, size: int, out: str | Path,
    config: str | Path | dict | DrawSettings | None = None, shape: ShapeModel | None = None,
) -> PairSet | None:
    """Returns n layouts as `draw` would give them to a generator that keeps nothing: their images show the labels.

    Raises:
        UserError: as `draw`.
    """
    check_size(size)
    settings, arrays = load_config(DrawSettings, config), labelled.arrays(size)
    check_request(n, arrays)
    shapes = shapes_of(shape, settings.layout, arrays, size=size)
    stems = stems_of(labelled)
    folder = claim_draw(out, "layouts", settings, {"labelled": arrays.fingerprint(), "n": n, "seed": seed,
                                               "shape": shapes.identity if shapes else "none"}, stems=stems)
    origin = Origin(arrays, "none", json.dumps(SHOWN, sort_keys=True), "layout",
                    taught=joined(one.taught for one in (shape, labelled) if one), stems=stems)
    return run_draw(folder, label_painter(arrays), origin=origin, gates=None, settings=settings, n=n, seed=seed,
                before=Before(shapes=shapes, shown_px=0.0))


def draw_roundtrip(  # noqa: PLR0913 - as `draw`
    generator: Generator, labelled: PairSet, *, n: int, seed: int = 0, out: str | Path,
    config: str | Path | dict | DrawSettings | None = None,
) -> PairSet | None:
    """Returns n pairs of the control: the sources that `draw` transforms, through the generator's autoencoder alone.

    Raises:
        UserError: as `draw`; also if the generator has no autoencoder.
    """
    settings, side = load_config(DrawSettings, config), generator.size
    check_layout(settings.layout, None)
    arrays = labelled.native(side) if is_native(generator) else labelled.arrays(side)
    check_fit(generator, arrays, labelled.where)
    check_request(n, arrays)
    generator.roundtrip(torch.zeros(1, generator.channels, side, side))  # raises before the folder is claimed
    name, sampler = generator.content_hash(), {"sampler": "roundtrip"}
    stems = stems_of(labelled)
    folder = claim_draw(out, "roundtrip", settings, {
        "generator": name, "sampler": sampler, "labelled": arrays.fingerprint(), "n": n, "seed": seed}, stems=stems)
    origin = Origin(arrays, name, json.dumps(sampler, sort_keys=True), "roundtrip",
                    taught=joined([generator.taught, labelled.taught]), stems=stems)
    return run_draw(folder, roundtrip_painter(generator), origin=origin, gates=None, settings=settings, n=n, seed=seed,
                before=Before(window_of(generator, settings), painted=False))


def draw_copypaste(  # noqa: PLR0913 - as `draw`
    labelled: PairSet, unlabelled: ImageSet | None, *, predict: Predict | None, judge: str = "", n: int, seed: int = 0,
    size: int, out: str | Path, config: str | Path | dict | DrawSettings | None = None,
    paste: CopyPasteSettings | None = None,
) -> PairSet | None:
    """Returns n pairs of the control: the foregrounds that `draw` transforms, pasted onto other real images.

    Args:
        unlabelled: further backgrounds, used where `predict` sees no confident foreground; needs `predict`.
        judge: content hash of the model behind `predict`.

    Raises:
        UserError: as `draw`.
    """
    settings, paste = load_config(DrawSettings, config), paste or CopyPasteSettings()
    check_layout(settings.layout, None)
    arrays = labelled.arrays(size)
    check_request(n, arrays)
    pile = unlabelled.arrays(size) if unlabelled is not None and predict is not None else None
    sampler = {"sampler": "copypaste", **paste.model_dump(), **settings.clear.model_dump()}
    stems = stems_of(labelled, unlabelled)
    folder = claim_draw(out, "copypaste", settings, {
        "sampler": sampler, "labelled": arrays.fingerprint(), "unlabelled": pile.fingerprint() if pile else "none",
        "judge": judge, "n": n, "seed": seed}, stems=stems)
    clear = pile and clear_backgrounds(pile, predict, confidence=settings.clear.confidence,
                                       max_share=settings.clear.max_share)
    painter = paste_painter(arrays, clear or None, seed=seed,
                            blend=lambda keep: blend_alpha(keep, width_px=paste.width_px))
    origin = Origin(arrays, "copypaste", json.dumps(sampler, sort_keys=True), "paste",
                    taught=joined(one.taught for one in (labelled, unlabelled) if one), stems=stems)
    return run_draw(folder, painter, origin=origin, gates=None, settings=settings, n=n, seed=seed)
