"""Fits a translator: pairs held aside, the training run, a look at collapse, the pipeline folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from synth.core.checks import UserError
from synth.core.config import save_config
from synth.core.device import compute_device
from synth.core.files import claim_folder, write_json
from synth.core.loop import train
from synth.core.pairs import Arrays, ImageSet, PairSet, check_joinable
from synth.core.rng import derive_seed
from synth.core.space import pixels_to_unit
from synth.gan.collapse import Shown, enforce_health, measure_health
from synth.gan.recipe import TranslateRecipe, build_discriminator, build_translator
from synth.gan.settings import TranslateSettings
from synth.gan.told import frames_of, labels_to_told, pair_batches
from synth.gan.translate import TranslatePipeline
from synth.layouts import check_moves_alone
from synth.pipelines import quiet, save_pipeline

LEAST_PAIRS = 4
"""Fewest pairs to train on; none of these is held aside."""


def load_translator(folder: Path) -> TranslatePipeline:
    """Returns the pipeline saved in `folder`, on the GPU if there is one; only local files, and no progress bar."""
    with quiet():
        return TranslatePipeline.from_pretrained(folder, local_files_only=True).to(compute_device())


def check_settings(settings: TranslateSettings, *, n_ranks: int) -> None:
    """Returns nothing; raises if the settings do not fit together.

    Raises:
        UserError: naming the setting.
    """
    levels = len(settings.translator.widths)
    if settings.model == "oasis":
        levels = max(levels, len(settings.discriminator.widths))
    if levels < 2 or settings.size % 2 ** (levels - 1) or settings.size < 2 ** levels:
        raise UserError(f"size={settings.size}", rule=f"with {levels} widths the size is a multiple of "
                        f"{2 ** (levels - 1)} and at least {2 ** levels}", repair="change the size or give fewer "
                        "widths")
    if settings.batch_size % n_ranks:
        raise UserError(f"batch_size={settings.batch_size}", rule=f"it is no multiple of the {n_ranks} processes",
                        repair="change it or the number of processes")
    check_moves_alone(settings.layout, rule="a translator learns from real pairs, each as often as another, which are "
                      "moved, turned and bent alone", repair="synth draw has its own layout settings")


def split_aside(arrays: Arrays, n: int, *, seed: int) -> tuple[Arrays, Arrays | None]:
    """Returns the pairs to train on, and up to n held aside, whole groups; None where no group can be spared."""
    groups = sorted(set(arrays.groups))
    order = np.random.default_rng(derive_seed(seed, "aside")).permutation(len(groups))
    held: list[int] = []
    for g in order:
        rows = [i for i, name in enumerate(arrays.groups) if name == groups[g]]
        # A group is a patient: with half of it in training, the other half would be no test.
        if len(held) + len(rows) <= n and len(arrays) - len(held) - len(rows) >= LEAST_PAIRS:
            held += rows
    if not held:
        return arrays, None
    return arrays.select([i for i in range(len(arrays)) if i not in held]), arrays.select(sorted(held))


def fit_translate(settings: TranslateSettings, labelled: PairSet, unlabelled: ImageSet | None,
                  out: Path) -> TranslatePipeline:
    """Returns the fitted translator, saved in `out`; running again resumes, or returns at once when finished.

    Raises:
        UserError: if the settings do not fit, the translator has collapsed, `out` holds another run, there is one pair
            alone, or there are unlabelled images that it would not use, or none where it wants them.
    """
    _check_unlabelled(settings, labelled, unlabelled)
    if len(labelled) < 2:
        raise UserError(f"{labelled.where}: 1 labelled pair", rule="a translator needs two or more: whether its images "
                        "differ enough is judged by how real ones do", repair="label another image, or fit an "
                        "inpainter")
    check_settings(settings, n_ranks=PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes)
    arrays = _in_order(labelled.arrays(settings.size))
    pile = None if unlabelled is None else _in_order(unlabelled.arrays(settings.size).without_masks())
    apart = {"data": True, "out": True, "collapse": {"min_diversity", "max_overfit", "features"}}
    claim_folder(out, kind="translate", identity={"settings": settings.model_dump(mode="json", exclude=apart),
                                                  "images": arrays.fingerprint(),
                                                  **({} if pile is None else {"unlabelled": pile.fingerprint()})})
    if not (out / "model_index.json").exists():
        save_config(settings, out / "config.yaml")
        pipeline = _train_pipeline(settings, arrays, pile, out)
        if PartialState().is_main_process:
            save_pipeline(pipeline, out)
        PartialState().wait_for_everyone()
    # What is returned is what was saved, so a fresh fit and a reloaded one cannot differ.
    return load_translator(out)


def _in_order(arrays: Arrays) -> Arrays:
    # The order of arrival is no setting.
    return arrays.select(np.argsort(np.array(arrays.ids), kind="stable"))


def _check_unlabelled(settings: TranslateSettings, labelled: PairSet, unlabelled: ImageSet | None) -> None:
    wanted = settings.loss.unlabelled > 0
    if wanted and settings.model != "oasis":
        raise UserError(f"loss.unlabelled={settings.loss.unlabelled:g}", rule=f"the discriminator of {settings.model} "
                        "judges an image by its mask, and an unlabelled one has none", repair="take model=oasis")
    if unlabelled is None and wanted:
        raise UserError(f"loss.unlabelled={settings.loss.unlabelled:g}", rule="there are no unlabelled images",
                        repair="give data.unlabelled, or write 0")
    if unlabelled is not None and not wanted:
        raise UserError(unlabelled.where, rule="with loss.unlabelled=0 a translator learns from labelled pairs alone",
                        repair="leave data.unlabelled out, or write loss.unlabelled=1 (model=oasis)")
    if unlabelled is not None:
        check_joinable(labelled, unlabelled, unlabelled.where)


def _shown(arrays: Arrays, *, keep_in: str) -> Shown:
    labels = torch.from_numpy(arrays.masks.astype(np.int64))
    frames = torch.from_numpy(frames_of(arrays, keep_in=keep_in))
    return Shown(pixels_to_unit(arrays.images, arrays.info.intensity_range), labels, frames,
                 labels_to_told(labels, frames, n_classes=arrays.info.n_classes))


def _train_pipeline(settings: TranslateSettings, arrays: Arrays, pile: Arrays | None,
                    out: Path) -> TranslatePipeline:
    info = arrays.info
    training, held = split_aside(arrays, settings.collapse.held_aside, seed=settings.loop.seed)
    words = {"channels": info.channels, "n_classes": info.n_classes}
    recipe = TranslateRecipe(build_translator(settings, **words), build_discriminator(settings, **words), settings)
    train(recipe, pair_batches(training, held, settings, pile=pile), out / "translator_run", settings.loop,
          label=settings.model)
    low, high = info.intensity_range
    pipeline = TranslatePipeline(recipe.averages["translator"].net.cpu(), info.n_classes, settings.model, unit_low=low,
                                 unit_high=high)
    keep_in = settings.layout.keep_in
    aside = None if held is None else _shown(held, keep_in=keep_in)
    health = measure_health(pipeline, recipe, _shown(training, keep_in=keep_in), aside,
                            settings=settings.collapse)
    if PartialState().is_main_process:
        write_json(out / "health.json", dataclasses.asdict(health))
    enforce_health(health, settings.collapse)
    return pipeline
