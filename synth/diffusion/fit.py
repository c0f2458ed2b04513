"""Fits the inpainting generator: autoencoder, latent statistics, denoiser, pipeline folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers.utils import logging as diffusers_logging

from synth.core.checks import UserError
from synth.core.config import save_config
from synth.core.device import compute_device
from synth.core.files import claim_folder
from synth.core.loop import train
from synth.core.pairs import Arrays, ImageSet, PairSet
from synth.core.rng import sample_rng, uniform
from synth.core.space import pixels_to_unit
from synth.diffusion.autoencoder import (
    autoencoder_recipe,
    build_autoencoder,
    encode_statistics,
    image_batches,
    standardise,
)
from synth.diffusion.denoiser import DenoiserRecipe, build_denoiser, build_scheduler, latent_batches
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.settings import DenoiserSettings, InpaintSettings


def training_images(labelled: PairSet, unlabelled: ImageSet | None, size: int) -> Arrays:
    """Returns the images of both sets at `size`, sorted by id, without masks: the order of arrival is no setting.

    Raises:
        UserError: if the sets differ in channels, or share an id.
    """
    arrays = labelled.arrays(size).without_masks()
    if unlabelled is not None and len(unlabelled):
        other = unlabelled.arrays(size)
        if other.info.channels != arrays.info.channels or other.images.dtype != arrays.images.dtype:
            raise UserError(unlabelled.where, rule=f"unlabelled images have {other.info.channels} channel(s) of "
                            f"{other.info.bit_depth} bit, labelled ones {arrays.info.channels} of "
                            f"{arrays.info.bit_depth} bit", repair="give data.channels=1 or 3, or convert one set")
        shared = set(arrays.ids) & set(other.ids)
        if shared:
            raise UserError(unlabelled.where, rule=f"id {sorted(shared)[0]!r} is in the labelled set too",
                            repair="remove it from one of the two folders")
        arrays = dataclasses.replace(arrays, images=np.concatenate([arrays.images, other.images]),
                                     ids=arrays.ids + other.ids, groups=arrays.groups + other.groups)
    return arrays.select(np.argsort(np.array(arrays.ids), kind="stable"))


def zoomed(images: torch.Tensor, ids: tuple[str, ...], *, view: int, settings: DenoiserSettings) -> torch.Tensor:
    """Returns view number `view` of unit images (N, C, S, S): 0 = as they are, else a random crop, perhaps mirrored."""
    if view == 0:
        return images
    out = torch.empty_like(images)
    for i, name in enumerate(ids):
        rng = sample_rng(view, "view", name)
        s = 1 / uniform(rng, 1, settings.zoom)
        x, y = uniform(rng, s - 1, 1 - s), uniform(rng, s - 1, 1 - s)
        sign = -1.0 if settings.flip and uniform(rng, 0, 1) < 0.5 else 1.0
        theta = torch.tensor([[[sign * s, 0, x], [0, s, y]]])
        grid = F.affine_grid(theta, [1, *images.shape[1:]], align_corners=False)
        out[i] = F.grid_sample(images[i:i + 1], grid, padding_mode="reflection", align_corners=False)[0]
    return out


def _save_pipeline(pipeline: InpaintPipeline, out: Path) -> None:
    """Moves the saved pipeline into `out`, its index last: a folder with an index is a whole pipeline."""
    staging = out / ".pipeline"
    shutil.rmtree(staging, ignore_errors=True)
    pipeline.save_pretrained(staging, safe_serialization=True)
    for part in sorted(staging.iterdir(), key=lambda p: p.name == "model_index.json"):
        target = out / part.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(part, target)
    staging.rmdir()


def load_pipeline(folder: Path) -> InpaintPipeline:
    """Returns the pipeline saved in `folder`, on the GPU if there is one; only local files, and no progress bar."""
    diffusers_logging.disable_progress_bar()
    try:
        return InpaintPipeline.from_pretrained(folder, local_files_only=True).to(compute_device())
    finally:
        diffusers_logging.enable_progress_bar()


def _check_settings(settings: InpaintSettings, *, n_ranks: int) -> None:
    ae, dn = settings.autoencoder, settings.denoiser
    side = 2 ** (len(ae.widths) + len(dn.widths) - 2)
    if settings.size % side:
        raise UserError(f"size={settings.size}", rule=f"the size must be a multiple of {side} for these widths",
                        repair="choose such a size")
    if len(dn.attention) != len(dn.widths):
        raise UserError(f"denoiser.attention={list(dn.attention)}", rule="it has one entry for each of "
                        f"denoiser.widths={list(dn.widths)}", repair="write as many of both")
    for name, batch_size in (("autoencoder", ae.batch_size), ("denoiser", dn.batch_size)):
        if batch_size % n_ranks:
            raise UserError(f"{name}.batch_size={batch_size}", rule=f"it is no multiple of the {n_ranks} processes",
                            repair="change it or the number of processes")


def fit_inpaint(
    settings: InpaintSettings, labelled: PairSet, unlabelled: ImageSet | None, out: Path
) -> InpaintPipeline:
    """Returns the fitted pipeline, saved in `out`; running again resumes, or returns at once when finished.

    Only images are used, never masks: labelled and unlabelled ones of the training split.

    Raises:
        UserError: if the settings or the sets do not fit together, or `out` holds another run.
    """
    _check_settings(settings, n_ranks=PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes)
    arrays = training_images(labelled, unlabelled, settings.size)
    identity = settings.model_dump(mode="json", exclude={"data", "out"})
    claim_folder(out, kind="inpaint", identity={"settings": identity, "images": arrays.fingerprint()})
    if (out / "model_index.json").exists():
        return load_pipeline(out)
    save_config(settings, out / "config.yaml")
    pipeline = _train_pipeline(settings, arrays, out)
    if PartialState().is_main_process:
        _save_pipeline(pipeline, out)
    PartialState().wait_for_everyone()
    # What is returned is what was saved, so a fresh fit and a reloaded one cannot differ.
    return load_pipeline(out)


def _train_pipeline(settings: InpaintSettings, arrays: Arrays, out: Path) -> InpaintPipeline:
    ae, dn = settings.autoencoder, settings.denoiser
    torch.manual_seed(ae.loop.seed)
    vae = build_autoencoder(ae, channels=arrays.info.channels, size=settings.size)
    batches = image_batches(arrays, batch_size=ae.batch_size, seed=ae.loop.seed, flip=dn.flip)
    train(autoencoder_recipe(vae, ae), batches, out / "autoencoder", ae.loop, label="autoencoder")
    vae.eval().requires_grad_(False)
    images = pixels_to_unit(arrays.images, arrays.info.intensity_range)
    views = [encode_statistics(vae, zoomed(images, arrays.ids, view=v, settings=dn)) for v in range(dn.n_views)]
    standardise(vae, views[0])
    torch.manual_seed(dn.loop.seed)
    latent_size = views[0].mean.shape[-1]
    unet = build_denoiser(dn, latent_channels=ae.latent_channels, latent_size=latent_size)
    scheduler = build_scheduler()
    recipe = DenoiserRecipe(unet, scheduler.alphas_cumprod, dn)
    batches = latent_batches(views, shift=vae.config.shift_factor, scale=vae.config.scaling_factor,
                             batch_size=dn.batch_size, seed=dn.loop.seed)
    train(recipe, batches, out / "denoiser", dn.loop, label="denoiser")
    low, high = arrays.info.intensity_range
    return InpaintPipeline(vae.cpu(), recipe.averages["unet"].net.cpu(), scheduler, unit_low=low, unit_high=high,
                           **settings.sampler.model_dump())
