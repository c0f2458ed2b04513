"""Fits appearance translation: styles found, pairs held aside, the training run, its health, the pipeline folder."""

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
from synth.core.space import pixels_to_unit
from synth.gan.fit import split_aside
from synth.gan.restyle.batches import Pool, restyle_batches
from synth.gan.restyle.health import Aside, enforce_restyle, measure_restyle, save_style_grid
from synth.gan.restyle.looks import find_styles, look_of
from synth.gan.restyle.pipeline import AppearancePipeline
from synth.gan.restyle.recipe import RestyleRecipe, build_restyle_nets
from synth.gan.restyle.settings import AppearanceSettings
from synth.pipelines import quiet, save_pipeline


def load_appearance(folder: Path) -> AppearancePipeline:
    """Returns the pipeline saved in `folder`, on the GPU if there is one; only local files, and no progress bar."""
    with quiet():
        return AppearancePipeline.from_pretrained(folder, local_files_only=True).to(compute_device())


def check_settings(settings: AppearanceSettings, *, n_ranks: int) -> None:
    """Returns nothing; raises UserError, naming the setting, if the settings do not fit together."""
    levels = max(len(settings.translator.widths), len(settings.coach.widths))
    if min(len(settings.translator.widths), len(settings.coach.widths)) < 2:
        raise UserError("widths", rule="translator and coach have two levels or more", repair="give more widths")
    if settings.size % 2 ** (levels - 1) or settings.size < 2 ** levels:
        raise UserError(f"size={settings.size}", rule=f"with {levels} widths the size is a multiple of "
                        f"{2 ** (levels - 1)} and at least {2 ** levels}", repair="change the size or give fewer "
                        "widths")
    if settings.batch_size % (2 * n_ranks):
        raise UserError(f"batch_size={settings.batch_size}", rule="half of a batch is labelled, and each of the "
                        f"{n_ranks} process(es) takes its share", repair=f"take a multiple of {2 * n_ranks}")


def _sorted_arrays(images: ImageSet, size: int) -> Arrays:
    arrays = images.arrays(size)
    return arrays.select(np.argsort(np.array(arrays.ids), kind="stable"))  # the order of arrival is no setting


@dataclasses.dataclass(frozen=True)
class _Training:
    """What is trained on, and the labelled pairs held aside; ids of the pool's images in its order."""

    pool: Pool
    aside: Aside | None
    ids: list[str]


def _unit(arrays: Arrays) -> torch.Tensor:
    return pixels_to_unit(arrays.images, arrays.info.intensity_range)


def _training(settings: AppearanceSettings, pairs: Arrays, pile: Arrays | None,
              domains: dict[str, str | None]) -> _Training:
    seed = settings.loop.seed
    pairs, held = split_aside(pairs, settings.health.held_aside, seed=seed)
    ids = [*pairs.ids, *(pile.ids if pile is not None else ())]
    images = torch.cat([_unit(pairs), *([] if pile is None else [_unit(pile)])])
    styles = find_styles(look_of(images), [domains[i] for i in ids], settings.styles, ids=ids, seed=seed)
    pool = Pool(images, torch.from_numpy(pairs.masks.astype(np.int64)), styles)
    aside = None if held is None else Aside(_unit(held), torch.from_numpy(held.masks.astype(np.int64)))
    return _Training(pool, aside, ids)


def fit_appearance(settings: AppearanceSettings, labelled: PairSet, unlabelled: ImageSet | None,
                   out: Path) -> AppearancePipeline:
    """Returns the fitted translator of appearances, saved in `out`; running again resumes, or returns at once.

    Raises:
        UserError: if the settings or the sets do not fit together, there are no two styles, the translator hardly
            translates, or `out` holds another run.
    """
    check_settings(settings, n_ranks=PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes)
    given = [labelled] if unlabelled is None else [labelled, unlabelled]
    if unlabelled is not None:
        check_joinable(labelled, unlabelled, unlabelled.where)
    arrays = [_sorted_arrays(one, settings.size) for one in given]
    domains = {item.id: item.domain for one in given for item in one.items}
    training = _training(settings, arrays[0], arrays[1] if unlabelled is not None else None, domains)
    apart = {"data": True, "out": True, "health": {"min_moved", "min_mask_kept"}}
    claim_folder(out, kind="appearance", identity={
        "settings": settings.model_dump(mode="json", exclude=apart), "images": [a.fingerprint() for a in arrays],
        "domains": domains})
    if not (out / "model_index.json").exists():
        save_config(settings, out / "config.yaml")
        pipeline = _train_pipeline(settings, training, arrays[0], out)
        if PartialState().is_main_process:
            save_pipeline(pipeline, out)
        PartialState().wait_for_everyone()
    # What is returned is what was saved, so a fresh fit and a reloaded one cannot differ.
    return load_appearance(out)


def _train_pipeline(settings: AppearanceSettings, training: _Training, labelled: Arrays,
                    out: Path) -> AppearancePipeline:
    pool, info = training.pool, labelled.info
    nets = build_restyle_nets(settings, channels=info.channels, n_classes=info.n_classes,
                              n_styles=len(pool.styles.names))
    recipe = RestyleRecipe(nets, settings, known=pool.known)
    train(recipe, restyle_batches(pool, settings), out / "appearance_run", settings.loop, label="appearance")
    low, high = info.intensity_range
    pipeline = AppearancePipeline(recipe.averages["translator"].net.cpu(), list(pool.styles.names),
                                  pool.styles.centres.tolist(), pool.styles.scale.tolist(), unit_low=low,
                                  unit_high=high, bit_depth=info.bit_depth)
    health = measure_restyle(pipeline, recipe.nets["coach"], pool, training.aside, ids=training.ids)
    if PartialState().is_main_process:
        write_json(out / "health.json", dataclasses.asdict(health))
        save_style_grid(pipeline, pool, out / "styles.png")
    enforce_restyle(health, settings.health)
    return pipeline
