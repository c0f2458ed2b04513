"""`fit` and `load_generator`: the one place that turns a kind or a folder into an engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from synth.appearance.fit import fit_spectral, load_spectral, spectral_taught
from synth.appearance.settings import SpectralSettings
from synth.core.checks import UserError, check_read, check_written
from synth.core.config import kind_of, load_config
from synth.core.pairs import ImageSet, PairSet
from synth.core.shell import required
from synth.core.taught import Taught
from synth.diffusion.fit import fit_inpaint, inpaint_taught, load_pipeline
from synth.diffusion.settings import InpaintSettings
from synth.formats import MaskSet, load_images, load_masks, load_pairs
from synth.gan.fit import fit_translate, load_translator
from synth.gan.restyle.fit import fit_appearance, load_appearance
from synth.gan.restyle.settings import AppearanceSettings
from synth.gan.settings import TranslateSettings
from synth.gan.unpaired.fit import fit_unpaired
from synth.gan.unpaired.settings import UnpairedSettings
from synth.generator import Generator
from synth.layouts.shape import ShapeModel
from synth.layouts.shape.fit import ShapeSettings, fit_shape

FitSettings = (InpaintSettings | TranslateSettings | SpectralSettings | AppearanceSettings | UnpairedSettings
               | ShapeSettings)


def _taught(settings: FitSettings, labelled: PairSet | MaskSet, unlabelled: ImageSet | None) -> Taught:
    # Masks without images have no groups either: of whom they are is not known.
    return Taught.of_sets([None if isinstance(labelled, MaskSet) else labelled, unlabelled])


@dataclass(frozen=True)
class Kind:
    """One kind of model: its settings, and how it is fitted on labelled and unlabelled images into a folder.

    Attributes:
        unpaired: whether masks that belong to no image take the place of the labelled images.
        taught: what it then knows of these images; the default is all of them.
    """

    settings: type[FitSettings]
    fit: Callable[[FitSettings, PairSet | MaskSet, ImageSet | None, Path], Generator | ShapeModel]
    unpaired: bool = False
    taught: Callable[[FitSettings, PairSet | MaskSet, ImageSet | None], Taught] = _taught


KINDS: dict[str, Kind] = {
    "inpaint": Kind(InpaintSettings, fit_inpaint, taught=inpaint_taught),
    "translate": Kind(TranslateSettings, fit_translate),
    "spectral": Kind(SpectralSettings, fit_spectral, taught=spectral_taught),
    "shape": Kind(ShapeSettings, fit_shape),
    "appearance": Kind(AppearanceSettings, fit_appearance),
    "unpaired": Kind(UnpairedSettings, fit_unpaired, unpaired=True),
}
"""By the word that the settings have as `kind`."""

ENGINES: dict[str, Callable[[Path], Generator]] = {
    "InpaintPipeline": load_pipeline,
    "TranslatePipeline": load_translator,
    "SpectralPipeline": load_spectral,
    "AppearancePipeline": load_appearance,
}
"""How to load a pipeline, by the class name that its model_index.json carries."""


def load_fit_settings(config: str | Path | dict | FitSettings, overrides: Sequence[str] = ()) -> FitSettings:
    """Returns the settings of a fit, of the kind that they name; without one they are an inpainter's.

    Raises:
        UserError: for an unknown kind, or as `load_config`.
    """
    kind = kind_of(config, overrides) or "inpaint"
    if str(kind) not in KINDS:
        raise UserError(f"kind={kind}", rule="no such kind of generator", repair=f"take one of {', '.join(KINDS)}")
    return load_config(KINDS[kind].settings, config, overrides)


def fit(config: str | Path | dict | FitSettings, labelled: PairSet | None, unlabelled: ImageSet | None = None, *,
        masks: MaskSet | None = None, out: str | Path, overrides: Sequence[str] = ()) -> Generator | ShapeModel:
    """Returns a generator fitted on images of the training split, saved in `out` as a diffusers pipeline folder.

    What it was fitted on is noted beside it as hashes (taught.json), and goes into every set that is made with it.

    Settings of kind "shape" give a shape model of the label masks. Running again resumes; a finished folder is loaded
    at once. Works under `accelerate launch`.

    Args:
        labelled: None, and `masks` in its place (`load_masks`), for kind unpaired.

    Raises:
        UserError: for unknown settings, sets that do not fit together, or an `out` that holds another run.
    """
    check_read({"labelled": labelled, "unlabelled": unlabelled})
    settings = load_fit_settings(config, overrides)
    kind = KINDS[settings.kind]
    given, other = (masks, labelled) if kind.unpaired else (labelled, masks)
    if given is None or other is not None:
        what = ("masks (data.masks=)", "labelled images") if kind.unpaired else ("labelled images (data.labelled=)",
                                                                                 "masks")
        raise UserError(f"kind={settings.kind}", rule=f"it learns from {what[0]}, not from {what[1]}",
                        repair=f"give {what[0]} and no {what[1]}")
    for images in (labelled, unlabelled):
        if images is not None and settings.kind != "shape":  # what is fitted could be asked for pairs and write none
            check_written(images.info.channels, images.info.bit_depth, images.where)
    # Before the fit: a kill between fit and note is then hardly possible. A note that is there is of the same images,
    # or the fit refuses the folder.
    taught = Taught.load(Path(out)) or kind.taught(settings, given, unlabelled)
    made = kind.fit(settings, given, unlabelled, Path(out))
    if PartialState().is_main_process:
        taught.save(Path(out))
    if isinstance(made, ShapeModel):
        return dataclasses.replace(made, taught=taught)
    made.taught = taught
    return made


def fit_folders(settings: FitSettings) -> Generator | ShapeModel:
    """Returns `fit` of the folders that `settings` name under `data`, into their `out`.

    Raises:
        UserError: if a folder is missing or breaks a rule, and as `fit`.
    """
    data, out = settings.data, required(settings.out, "out", "runs/painter")
    if KINDS[settings.kind].unpaired:
        if data.labelled:
            raise UserError("data.labelled", rule="this kind sees no labelled image", repair="leave it out; masks go "
                            "into data.masks, images into data.unlabelled")
        masks = load_masks(required(data.masks, "data.masks", "data/masks"), mask_map=data.mask_map)
        images = load_images(required(data.unlabelled, "data.unlabelled", "data/unlabelled"), channels=data.channels)
        return fit(settings, None, images, masks=masks, out=out)
    labelled = load_pairs(required(data.labelled, "data.labelled", "data/labelled"), mask_map=data.mask_map,
                          channels=data.channels)
    unlabelled = load_images(data.unlabelled, channels=data.channels, like=labelled.info) if data.unlabelled else None
    return fit(settings, labelled, unlabelled, out=out)


def load_generator(folder: str | Path) -> Generator:
    """Returns the generator saved in `folder`.

    Raises:
        UserError: if there is none.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise UserError(str(folder), rule="no finished generator here (no model_index.json)",
                        repair="run synth fit until it ends; it resumes")
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if name not in ENGINES:
        raise UserError(str(index), rule=f"{name!r} is none of our generators", repair=f"one of {sorted(ENGINES)}")
    generator = ENGINES[name](Path(folder))
    generator.taught = Taught.load(Path(folder))
    return generator
