"""Fits translators without pairs: the training run, a look at what they learnt, the folder that draws and labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from synth.core.checks import UserError
from synth.core.config import change_config, save_config
from synth.core.files import claim_folder, write_json
from synth.core.loop import train
from synth.core.pairs import ImageSet
from synth.core.rng import derive_seed, randn_each, sample_rng
from synth.core.space import labels_to_onehot, pixels_to_unit, top_class
from synth.features import diversity, load_features
from synth.formats.masks import MaskSet
from synth.gan.fit import load_translator
from synth.gan.translate import TranslatePipeline
from synth.gan.unpaired.batches import Unpaired, frames_of, unpaired_batches
from synth.gan.unpaired.health import (
    Health,
    alike,
    class_statistics,
    enforce_health,
    find_exchange,
    other_rows,
    place,
    smooth,
)
from synth.gan.unpaired.label import FOLDER, LabelPipeline
from synth.gan.unpaired.networks import StyleEncoder
from synth.gan.unpaired.recipe import NCE_LEVEL, UnpairedRecipe, told_of
from synth.gan.unpaired.settings import UnpairedSettings
from synth.layouts import check_moves_alone
from synth.pipelines import change_index, save_pipeline

N_LOOKED_AT = 128
"""Images and masks that the health is measured on, at most."""
LEAST = 4
"""Fewest images and masks."""


def check_settings(settings: UnpairedSettings, *, n_ranks: int) -> None:
    """Returns nothing; raises if the settings do not fit together.

    Raises:
        UserError: naming the setting.
    """
    halved = max(len(settings.labeller.widths) - 1, len(settings.translator.widths) - 1, len(settings.shape.widths))
    if settings.size % 2**halved:
        raise UserError(f"size={settings.size}", rule=f"these widths halve it {halved} times, so it is a multiple of "
                        f"{2**halved}", repair="change the size or give fewer widths")
    for name in ("labeller", "translator"):
        if len(getattr(settings, name).widths) <= NCE_LEVEL:
            raise UserError(f"{name}.widths", rule=f"at least {NCE_LEVEL + 1} levels", repair="give more widths")
    if settings.batch_size % n_ranks:
        raise UserError(f"batch_size={settings.batch_size}", rule=f"it is no multiple of the {n_ranks} processes",
                        repair="change it or the number of processes")
    check_moves_alone(settings.layout, rule="masks without images come from data.masks and are only moved, turned and "
                      "bent here", repair="draw other masks with synth layouts first, and give their folder as "
                      "data.masks")


def _check_sets(masks: MaskSet, images: ImageSet) -> None:
    for where, n, what in ((images.where, len(images), "images"), (masks.where, len(masks), "masks")):
        if n < LEAST:
            raise UserError(where, rule=f"at least {LEAST} {what} are needed, this holds {n}", repair="give more")
    if images.info.n_classes > 1 and images.info.n_classes != len(masks.classes):
        raise UserError(masks.where, rule=f"its classes are {list(masks.classes)}, but {images.where} says "
                        f"{list(images.info.classes)}", repair="make them agree, e.g. with data.mask_map")


def fit_unpaired(settings: UnpairedSettings, masks: MaskSet, unlabelled: ImageSet | None,
                 out: Path) -> TranslatePipeline:
    """Returns the fitted translator, mask -> image; `out` holds it, and the labeller in labels/ (`synth label`).

    Running again resumes, or returns at once when finished; a finished folder is given another `tau`. No image's mask
    is read, whatever `unlabelled` holds.

    Raises:
        UserError: if settings or sets do not fit, the labels are inverted or all alike, or `out` holds another run.
    """
    if unlabelled is None:
        raise UserError("data.unlabelled=", rule="it was not given, and masks alone teach nobody to label an image",
                        repair="add data.unlabelled=data/unlabelled")
    check_settings(settings, n_ranks=PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes)
    _check_sets(masks, unlabelled)
    arrays = unlabelled.arrays(settings.size).without_masks()
    arrays = arrays.select(np.argsort(np.array(arrays.ids), kind="stable"))  # the order of arrival is no setting
    data = Unpaired(arrays, masks.arrays(settings.size), len(masks.classes),
                    frames_of(arrays.images, keep_in=settings.layout.keep_in))
    apart = {"data": True, "out": True, "health": True, "tau": True}
    claim_folder(out, kind="unpaired", identity={"settings": settings.model_dump(mode="json", exclude=apart),
                                                 "sets": data.fingerprint()})
    if not (out / "model_index.json").exists():
        save_config(settings, out / "config.yaml")
        drawing, labelling = _train_pipelines(settings, data, masks.classes, out)
        if PartialState().is_main_process:
            (out / FOLDER).mkdir(exist_ok=True)
            save_pipeline(labelling, out / FOLDER)
            save_pipeline(drawing, out)  # last: its index says that the folder is whole
    if PartialState().is_main_process:  # a finished run may have been asked to weigh otherwise
        change_index(out / FOLDER, {"tau": settings.tau})
        change_config(out / "config.yaml", {"tau": settings.tau})
    PartialState().wait_for_everyone()
    return load_translator(out)


def _train_pipelines(settings: UnpairedSettings, data: Unpaired, classes: tuple[str, ...],
                     out: Path) -> tuple[TranslatePipeline, LabelPipeline]:
    info = data.images.info
    recipe = UnpairedRecipe(settings, channels=info.channels, n_classes=data.n_classes)
    train(recipe, unpaired_batches(data, settings), out / "unpaired_run", settings.loop, label=settings.translation)
    low, high = info.intensity_range
    nets = {name: average.net.cpu().eval() for name, average in recipe.averages.items()}
    drawing = TranslatePipeline(nets["translator"], data.n_classes, settings.translation, unit_low=low, unit_high=high)
    labelling = LabelPipeline(nets["labeller"], nets["mask_judge"], energy=1.0, tau=settings.tau,
                              calibrate=settings.labeller.calibrate, keep_in=settings.layout.keep_in, unit_low=low,
                              unit_high=high, bit_depth=info.bit_depth)
    shown = torch.from_numpy(data.masks.astype(np.int64))
    labelling.register_to_config(energy=float(labelling.energy_of(shown).mean()))
    style = recipe.nets["translators"].style.cpu().eval()
    health = measure_health(drawing, labelling, style, data, settings=settings)
    if PartialState().is_main_process:
        write_json(out / "health.json", dataclasses.asdict(health))
    enforce_health(health, settings.health, classes)
    return drawing, labelling


@torch.no_grad()
def measure_health(drawing: TranslatePipeline, labelling: LabelPipeline, style: StyleEncoder, data: Unpaired, *,
                   settings: UnpairedSettings) -> Health:
    """Returns the health of a fit on the images (N, C, S, S) and masks that it learnt from."""
    info, n = data.images.info, min(N_LOOKED_AT, len(data.images))
    images = pixels_to_unit(data.images.images[:n], info.intensity_range)
    masks = torch.from_numpy(data.masks.astype(np.int64))
    frames = torch.from_numpy(data.frames[:n])[:, None].float()
    said = labelling(images, frames)
    labels = top_class(said.probabilities)
    ours, theirs = (class_statistics(x, n_classes=data.n_classes) for x in (labels, masks))
    distance, exchanged, nearest = find_exchange(ours, theirs)
    codes = style(images)[0]
    noise = randn_each((1, settings.size, settings.size), [sample_rng(i, "health") for i in range(n)])

    def error(some: torch.Tensor) -> float:
        """Returns the L1 of the images drawn again from labels (N, S, S) and their own style."""
        told = torch.cat([told_of(labels_to_onehot(some, data.n_classes), frames), noise], 1)
        return float(sum(F.l1_loss(drawing.translator(t, c), i, reduction="sum") for t, c, i in zip(
            told.split(32), codes.split(32), images.split(32), strict=True)) / images.numel())

    own, other = error(labels), error(labels[other_rows(n, seed=settings.loop.seed)])
    smoothed = error(smooth(labels, n_classes=data.n_classes))
    return Health(distance, exchanged, nearest, *(tuple(x[:, k].tolist()) for k in (0, 1) for x in (ours, theirs)),
                  alike(labels), alike(masks), place(labels, masks), place(masks, masks), own, other, smoothed,
                  own / other if other else 1.0, smoothed / own if own else 1.0, float(said.energy.mean()),
                  float(labelling.config.energy), float(said.weight.mean()),
                  _diversity(drawing, masks, images, settings))


def _diversity(drawing: TranslatePipeline, masks: torch.Tensor, images: torch.Tensor,
               settings: UnpairedSettings) -> float:
    features = load_features(settings.health.features)
    of_one = [float(diversity(drawing.draw(mask.expand(4, -1, -1), seeds=[derive_seed(i, "health", k)
                                                                          for k in range(4)]), features))
              for i, mask in enumerate(masks[:8])]
    real = float(diversity(images[:32], features))
    return sum(of_one) / len(of_one) / real if real > 0 else 0.0
