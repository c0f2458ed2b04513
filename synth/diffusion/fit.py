"""Fits the inpainting generator: autoencoder, latent statistics, denoiser, pipeline folder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from synth.core.checks import IGNORE
from synth.core.config import change_config, save_config
from synth.core.device import compute_device
from synth.core.files import claim_folder, write_json
from synth.core.loop import train
from synth.core.pairs import Arrays, DataInfo, ImageSet, PairSet, check_joinable
from synth.core.space import pixels_to_unit
from synth.core.taught import Taught, joined
from synth.diffusion.autoencoder import (
    autoencoder_recipe,
    build_autoencoder,
    encode_statistics,
    image_batches,
    standardise,
)
from synth.diffusion.batches import CachedView, cut_crops, denoiser_batches, view_of
from synth.diffusion.codec import (
    Codec,
    PixelCodec,
    latent_channels,
    latent_factor,
    latents_to_unit,
    load_codec,
    unit_to_latents,
)
from synth.diffusion.denoiser import DenoiserRecipe, build_denoiser, build_scheduler, labels_to_coverage
from synth.diffusion.health import Health, enforce_health, measure_health
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.plan import check_settings, resolve_settings, run_identity
from synth.diffusion.settings import InpaintSettings
from synth.pipelines import change_index, quiet, save_pipeline


def _joined(labelled: Arrays, other: Arrays | None, where: str, *, labels: bool) -> Arrays:
    """Returns both sets as one, sorted by id, see `training_images`."""
    n, _, size, _ = labelled.images.shape
    masks = labelled.masks if labels else np.full((n, size, size), IGNORE, np.uint8)
    arrays = dataclasses.replace(labelled, masks=masks)
    if other is not None:
        check_joinable(arrays, other, where)
        unknown = np.full((len(other), size, size), IGNORE, np.uint8)
        arrays = dataclasses.replace(
            arrays, images=np.concatenate([arrays.images, other.images]), masks=np.concatenate([masks, unknown]),
            ids=arrays.ids + other.ids, groups=arrays.groups + other.groups, weights=())  # a generator weighs no image
    return arrays.select(np.argsort(np.array(arrays.ids), kind="stable"))


def training_images(labelled: PairSet, unlabelled: ImageSet | None, size: int, *, labels: bool) -> Arrays:
    """Returns the images of both sets at `size`, sorted by id: the order of arrival is no setting.

    Args:
        labels: whether the masks of the labelled images are kept; those of all others are 255 everywhere (unknown).

    Raises:
        UserError: if the sets differ in channels, or share an id.
    """
    if unlabelled is None or not len(unlabelled):
        return _joined(labelled.arrays(size), None, "", labels=labels)
    return _joined(labelled.arrays(size), unlabelled.arrays(size), unlabelled.where, labels=labels)


def training_crops(labelled: PairSet, unlabelled: ImageSet | None, settings: InpaintSettings) -> list[Arrays]:
    """Returns `denoiser.n_views` sets of crops of both sets at their own resolution, else as `training_images`.

    Raises:
        UserError: as `training_images`.
    """
    size, dn = settings.size, settings.denoiser
    pairs = labelled.native(size)
    # Without labels no crop may depend on them: the generator then serves any choice of labelled images.
    crops = cut_crops(pairs if dn.labels else pairs.without_masks(), size=size, settings=dn)
    if unlabelled is None or not len(unlabelled):
        return [_joined(crop, None, "", labels=dn.labels) for crop in crops]
    others = cut_crops(unlabelled.native(size).without_masks(), size=size, settings=dn)
    return [_joined(crop, other, unlabelled.where, labels=dn.labels)
            for crop, other in zip(crops, others, strict=True)]


def inpaint_taught(settings: InpaintSettings, labelled: PairSet, unlabelled: ImageSet | None) -> Taught:
    """Returns what a fit learns from: both sets, and what a given autoencoder's own fit did, where that says so."""
    own, given = Taught.of_sets([labelled, unlabelled]), settings.autoencoder.pretrained
    # The folder of an autoencoder is one of its pipeline's.
    return joined([own, Taught.load(Path(given).resolve().parent)]) if given else own


def load_pipeline(folder: Path) -> InpaintPipeline:
    """Returns the pipeline saved in `folder`, on the GPU if there is one; only local files, and no progress bar."""
    with quiet():
        pipeline = InpaintPipeline.from_pretrained(folder, local_files_only=True).to(compute_device())
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def fit_inpaint(
    settings: InpaintSettings, labelled: PairSet, unlabelled: ImageSet | None, out: Path
) -> InpaintPipeline:
    """Returns the fitted pipeline, saved in `out`; running again resumes, or returns at once when finished.

    Other sampler settings need no other fit: a finished folder is given them.

    Images are those of the training split, labelled and unlabelled; masks are used if `denoiser.labels`.

    Raises:
        UserError: if the settings or the sets do not fit together, the autoencoder is not fit to be painted with, or
            `out` holds another run.
    """
    settings = resolve_settings(settings, labelled)
    check_settings(settings, n_ranks=PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes)
    if settings.scale == "native":
        views = training_crops(labelled, unlabelled, settings)
    else:
        views = [training_images(labelled, unlabelled, settings.size, labels=settings.denoiser.labels)]
    images = "-".join(view.fingerprint() for view in views)
    claim_folder(out, kind="inpaint", identity=run_identity(settings, out, images=images,
                                                            channels=labelled.info.channels))
    if not (out / "model_index.json").exists():
        save_config(settings, out / "config.yaml")
        encoded = _encoded(settings, views, out)
        del views  # the denoiser needs no pixel, and there may be gigabytes of them
        pipeline = _train_pipeline(settings, encoded, labelled.info, out)
        if PartialState().is_main_process:
            save_pipeline(pipeline, out)
        PartialState().wait_for_everyone()
    # What is returned is what was saved, so a fresh fit and a reloaded one cannot differ.
    pipeline = load_pipeline(out).with_sampler(settings.sampler)
    if PartialState().is_main_process:  # a finished run may have been asked to paint otherwise
        change_index(out, settings.sampler.model_dump(mode="json", exclude=set(pipeline.machine)))
        change_config(out / "config.yaml", {"sampler": settings.sampler.model_dump(mode="json")})
    PartialState().wait_for_everyone()
    return pipeline


def _together(arrays: list[Arrays]) -> Arrays:
    """Returns the images of all views as one set without masks; of a single view that view."""
    return arrays[0] if len(arrays) == 1 else dataclasses.replace(
        arrays[0], images=np.concatenate([v.images for v in arrays]), masks=None, ids=arrays[0].ids * len(arrays),
        groups=arrays[0].groups * len(arrays))


def _codec(settings: InpaintSettings, arrays: Arrays, out: Path) -> Codec:
    """Returns the codec, trained, loaded, or made: raw, its latents not yet standardised."""
    ae, channels = settings.autoencoder, arrays.info.channels
    if ae.pretrained:
        return load_codec(ae.pretrained, channels=channels)
    if ae.kind == "pixels":
        return PixelCodec(in_channels=channels, sample_size=settings.size, patch=ae.patch)
    torch.manual_seed(ae.loop.seed)
    vae = build_autoencoder(ae, channels=channels, size=settings.size)
    batches = image_batches(arrays, batch_size=ae.batch_size, seed=ae.loop.seed, flip=settings.denoiser.flip)
    train(autoencoder_recipe(vae, ae), batches, out / "autoencoder", ae.loop, label="autoencoder")
    return vae


HEALTH_IMAGES = 64
"""How many training images the codec's health is measured on."""


def _health(codec: Codec, images: torch.Tensor, labels: torch.Tensor, settings: InpaintSettings) -> Health:
    shown = labels != IGNORE
    rows = shown.flatten(1).any(1).nonzero().flatten()[:HEALTH_IMAGES]
    marked = labels[rows] if len(rows) and (labels[rows] > 0).any() else None
    picked = images[rows] if marked is not None else images[:HEALTH_IMAGES]
    return measure_health(
        lambda x: unit_to_latents(codec, x.to(codec.device)), lambda z: latents_to_unit(codec, z).cpu(), picked, marked,
        border_px=settings.health.border_px)


def _shown(settings: InpaintSettings, arrays: list[Arrays], view: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns unit images (N, C, S, S) and labels (N, S, S) uint8 of one view: crops, or a zoom of the whole images."""
    native = settings.scale == "native"
    shown = arrays[view if native else 0]
    images, labels = pixels_to_unit(shown.images, shown.info.intensity_range), torch.from_numpy(shown.masks)
    return (images, labels) if native else view_of(images, labels, shown.ids, view=view, settings=settings.denoiser)


@dataclass(frozen=True)
class _Encoded:
    """What the denoiser learns from: the codec, every view in its latents, and the rows that have labels, (L,)."""

    codec: Codec
    views: list[CachedView]
    labelled: torch.Tensor


def _encode_view(codec: Codec, settings: InpaintSettings, arrays: list[Arrays], view: int,
                 out: Path) -> tuple[CachedView, torch.Tensor]:
    """Returns one view, and which of its rows have labels, (N,) bool; the first standardises the codec's latents."""
    images, labels = _shown(settings, arrays, view)
    statistics = encode_statistics(codec, images)
    if view == 0:
        standardise(codec, statistics)
        health = _health(codec, images, labels, settings)
        write_json(out / "health.json", dataclasses.asdict(health))
        enforce_health(health, settings.health)
    shift, scale = codec.config.shift_factor, codec.config.scaling_factor
    coverage = labels_to_coverage(labels, arrays[0].info.n_classes, factor=latent_factor(codec))
    cached = CachedView((statistics.mean - shift) * scale, statistics.logvar + 2 * math.log(scale), coverage)
    return cached, (labels != IGNORE).flatten(1).any(1)


@torch.no_grad()
def _encoded(settings: InpaintSettings, arrays: list[Arrays], out: Path) -> _Encoded:
    with torch.enable_grad():
        codec = _codec(settings, _together(arrays), out)
    codec.eval().requires_grad_(False)
    # One after the other: the float32 images of a view take four times what all its pixels do.
    found = [_encode_view(codec, settings, arrays, view, out) for view in range(settings.denoiser.n_views)]
    labelled = torch.stack([told for _, told in found]).any(0).nonzero().flatten()
    return _Encoded(codec, [view for view, _ in found], labelled)


def _train_pipeline(settings: InpaintSettings, encoded: _Encoded, info: DataInfo, out: Path) -> InpaintPipeline:
    dn, codec, views = settings.denoiser, encoded.codec, encoded.views
    torch.manual_seed(dn.loop.seed)
    unet = build_denoiser(dn, latent_channels=latent_channels(codec), latent_size=views[0].mean.shape[-1],
                          n_classes=info.n_classes)
    unet = unet.to(memory_format=torch.channels_last)
    recipe = DenoiserRecipe(unet, dn)
    batches = denoiser_batches(views, encoded.labelled, batch_size=dn.batch_size, seed=dn.loop.seed, settings=dn)
    train(recipe, batches, out / "denoiser", dn.loop, label="denoiser")
    low, high = info.intensity_range
    return InpaintPipeline(codec.cpu(), recipe.averages["unet"].net.cpu(), build_scheduler(dn),
                           n_classes=info.n_classes, tells_labels=dn.labels, unit_low=low, unit_high=high,
                           scale=settings.scale, **settings.sampler.model_dump())
