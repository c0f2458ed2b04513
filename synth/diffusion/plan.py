"""What a fit will be, before anything is trained: settings decided and checked, and what tells one fit from another."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt, label

from synth.core.checks import IGNORE, UserError
from synth.core.files import RUN_FILE
from synth.core.pairs import PairSet
from synth.diffusion.codec import choose_space, codec_hash, latent_factor, load_codec
from synth.diffusion.settings import InpaintSettings, needs_labels, widths_of


def median_thickness(masks: Iterable[np.ndarray]) -> float | None:
    """Returns the median, over objects, of the diameter of the largest disc inside, px; None without an object.

    Args:
        masks: labels (H, W) of each image, 255 = unknown.
    """
    found = []
    for mask in masks:
        for k in np.unique(mask[(mask > 0) & (mask != IGNORE)]):
            parts, n = label(mask == k)
            depth = distance_transform_edt(parts > 0)
            found += [2 * float(depth[parts == i].max()) for i in range(1, n + 1)]
    return float(np.median(found)) if found else None


def resolve_settings(settings: InpaintSettings, labelled: PairSet) -> InpaintSettings:
    """Returns the settings with `autoencoder.widths` and `autoencoder.kind` decided."""
    ae = settings.autoencoder
    decided = {"widths": widths_of(ae, settings.size)}
    if ae.kind == "auto" and not ae.pretrained:
        arrays = labelled.native(settings.size) if settings.scale == "native" else labelled.arrays(settings.size)
        decided["kind"] = choose_space(median_thickness(arrays.masks))
    return settings.model_copy(update={"autoencoder": ae.model_copy(update=decided)})


def _check_size(settings: InpaintSettings, *, factor: int) -> None:
    side = factor * 2 ** (len(settings.denoiser.widths) - 1)
    if settings.size % side:
        raise UserError(f"size={settings.size}", rule=f"the size must be a multiple of {side} for these widths",
                        repair="choose such a size")


def check_settings(settings: InpaintSettings, *, n_ranks: int) -> None:
    """Returns nothing; raises if the resolved settings do not fit together.

    Raises:
        UserError: naming the setting.
    """
    ae, dn = settings.autoencoder, settings.denoiser
    if not ae.pretrained:
        _check_size(settings, factor=ae.patch if ae.kind == "pixels" else 2 ** (len(ae.widths) - 1))
    if len(dn.attention) != len(dn.widths):
        raise UserError(f"denoiser.attention={list(dn.attention)}", rule="it has one entry for each of "
                        f"denoiser.widths={list(dn.widths)}", repair="write as many of both")
    ranges = {"denoiser.sigma_min": (dn.sigma_min, "denoiser.sigma_max", dn.sigma_max),
              "health.min_latent_std": (settings.health.min_latent_std, "health.max_latent_std",
                                        settings.health.max_latent_std)}
    for name, (low, other, high) in ranges.items():
        if low >= high:
            raise UserError(f"{name}={low:g}", rule=f"it lies below {other}={high:g}",
                            repair=f"lower it, or raise {other}")
    if (words := needs_labels(settings.sampler)) and not dn.labels:
        raise UserError(f"sampler: {words}", rule="it needs a denoiser that learns labels",
                        repair="write denoiser.labels=true")
    for name, batch_size in (("autoencoder", ae.batch_size), ("denoiser", dn.batch_size)):
        if batch_size % n_ranks:
            raise UserError(f"{name}.batch_size={batch_size}", rule=f"it is no multiple of the {n_ranks} processes",
                            repair="change it or the number of processes")


OWN_CODEC = "weights of autoencoder.pretrained"
"""Under which name the identity of a fit has them."""


def _own_codec(settings: InpaintSettings, out: Path, *, channels: int) -> str:
    """Returns the hash of the autoencoder that is not trained here but given, when it is one for these images."""
    folder = Path(settings.autoencoder.pretrained)
    if (out / "model_index.json").exists() and not (folder / "config.json").is_file():
        # A finished generator has its own copy and outlives the folder: it is taken for what it began with.
        return json.loads((out / RUN_FILE).read_text(encoding="utf-8"))["identity"].get(OWN_CODEC)
    codec = load_codec(folder, channels=channels)
    _check_size(settings, factor=latent_factor(codec))
    return codec_hash(codec)


def run_identity(settings: InpaintSettings, out: Path, *, images: str, channels: int) -> dict[str, object]:
    """Returns what tells the fit in `out` from others: settings, images, the weights of an autoencoder of one's own.

    How it paints is no part of how it was fitted: other sampler settings need no other fit. Nor is where that
    autoencoder lies, but what it is: with other weights in the same folder, half of the run would be another.

    Args:
        images: fingerprint of the training images. channels: of these.

    Raises:
        UserError: if the autoencoder is none for these images.
    """
    own = bool(settings.autoencoder.pretrained)
    apart = {"data": True, "out": True, "health": True, "sampler": True, "autoencoder": {"pretrained": own}}
    identity = {"settings": settings.model_dump(mode="json", exclude=apart), "images": images}
    return {**identity, OWN_CODEC: _own_codec(settings, out, channels=channels)} if own else identity
