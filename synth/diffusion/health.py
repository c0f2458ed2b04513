"""Is the codec fit to be painted with? What a round trip loses at borders, and how its latents are spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings

Codec = Callable[[torch.Tensor], torch.Tensor]


class HealthSettings(Settings):
    """What a codec must reach before a denoiser is trained on its latents.

    Attributes:
        max_border_error: largest mean |error| at mask borders, as a share of the standard deviation of the images.
        max_gradient_error: the same at the steepest pixels, where there are no labels; they are harder.
        min_latent_std, max_latent_std: range of the standard deviation of the standardised latents.
        border_px: how far from a border a pixel still counts as border.
    """

    max_border_error: float = Field(0.2, gt=0)
    max_gradient_error: float = Field(0.35, gt=0)
    min_latent_std: float = Field(0.7, ge=0)
    max_latent_std: float = Field(1.3, gt=0)
    border_px: int = Field(2, ge=1)


@dataclass(frozen=True)
class Health:
    """What one round trip of a set of images did.

    Attributes:
        border_error, plain_error: mean |error| near borders and elsewhere, in unit range (0 to 2).
        border_ratio: border_error / plain_error; 1 if both are 0.
        latent_mean, latent_std: of the standardised latents.
        image_std: standard deviation of the images, in unit range.
        borders: "labels" = near mask borders; "gradients" = at the steepest pixels.
    """

    border_error: float
    plain_error: float
    border_ratio: float
    latent_std: float
    latent_mean: float
    image_std: float
    borders: Literal["labels", "gradients"] = "labels"


def label_borders(labels: torch.Tensor, *, border_px: int) -> torch.Tensor:
    """Returns where labels (B, H, W) have another label within `border_px`, (B, H, W) bool; 255 (ignore) is none."""
    valid, k = labels != IGNORE, 2 * border_px + 1
    values = labels.float()[:, None]
    # Max pooling pads with -inf, so the edge of the image is no border.
    highest = F.max_pool2d(values.masked_fill(~valid[:, None], -torch.inf), k, 1, border_px)
    lowest = -F.max_pool2d((-values).masked_fill(~valid[:, None], -torch.inf), k, 1, border_px)
    return (highest > lowest)[:, 0] & valid


def gradient_borders(images: torch.Tensor, *, share: float = 0.1) -> torch.Tensor:
    """Returns the `share` of pixels of each of images (B, C, H, W) with the steepest gradient, (B, H, W) bool."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    steepness = (dx.square() + dy.square()).sum(1)
    flat = steepness.flatten(1)
    n_below = min(max(round((1 - share) * flat.shape[1]), 1), flat.shape[1])
    return steepness > flat.kthvalue(n_below, dim=1).values[:, None, None]


def _mean(total: torch.Tensor, n: torch.Tensor) -> float:
    return float(total / n) if n else 0.0


@torch.no_grad()
def measure_health(encode: Codec, decode: Codec, images: torch.Tensor, labels: torch.Tensor | None, *,
                   border_px: int = HealthSettings().border_px, batch_size: int = 16) -> Health:
    """Returns the health of a codec on unit images (N, C, S, S) with labels (N, S, S), or None.

    Args:
        encode: unit (B, C, S, S) -> standardised latents (B, c, h, w). decode: the way back.
        labels: whose borders count. None = the steepest tenth of each image's pixels instead.

    Raises:
        UserError: if there is no border to measure at.
    """
    if labels is None:
        border = gradient_borders(images)
    else:
        border = label_borders(labels, border_px=border_px)
    if not border.any():
        what, repair = ("labels", "give images with foreground, or none") if labels is not None else (
            "images", "give images that are not constant")
        raise UserError(f"the {len(images)} {what}", rule="the codec's health is measured at borders, and these have "
                        "none", repair=repair)
    errors, latents = [], []
    for chunk in images.split(batch_size):
        code = encode(chunk)
        errors.append((decode(code) - chunk).abs().mean(1).cpu())
        latents.append(code.float().cpu())
    error, code, border = torch.cat(errors).double(), torch.cat(latents).double(), border.cpu()
    at_border = _mean(error[border].sum(), border.sum())
    elsewhere = _mean(error[~border].sum(), (~border).sum())
    ratio = at_border / elsewhere if elsewhere > 0 else (1.0 if at_border == 0 else float("inf"))
    return Health(border_error=at_border, plain_error=elsewhere, border_ratio=ratio, latent_std=float(code.std()),
                  latent_mean=float(code.mean()), image_std=float(images.double().std()),
                  borders="gradients" if labels is None else "labels")


def enforce_health(health: Health, limits: HealthSettings) -> None:
    """Returns nothing if the codec is fit to be painted with.

    Raises:
        UserError: naming the value, its limit, and what to change.
    """
    name = "max_border_error" if health.borders == "labels" else "max_gradient_error"
    share = limits.max_border_error if health.borders == "labels" else limits.max_gradient_error
    most = share * health.image_std
    # `not <=` and not `>`: a value that is no number passes no limit.
    if not health.border_error <= most:
        raise UserError(
            f"border_error={health.border_error:.3g} ({health.border_ratio:.2g} times that elsewhere)",
            rule=f"at borders the codec may lose {most:.3g}, {name}={share:g} of the images' standard "
            f"deviation {health.image_std:.3g}; beyond it, what is painted beside a kept border is "
            "blurred", repair="into another out=, train the autoencoder longer (autoencoder.loop.steps), choose a "
            "smaller factor (fewer autoencoder.widths), or paint in pixels (autoencoder.kind=pixels)")
    if not limits.min_latent_std <= health.latent_std <= limits.max_latent_std:
        raise UserError(
            f"latent_std={health.latent_std:.3g} (mean {health.latent_mean:.2g})",
            rule=f"standardised latents have a standard deviation from {limits.min_latent_std:g} to "
            f"{limits.max_latent_std:g}, or the noise levels do not fit them",
            repair="into another out=, train the autoencoder longer, lower autoencoder.kl_weight, choose a smaller "
            "factor, or paint in pixels (autoencoder.kind=pixels)")
