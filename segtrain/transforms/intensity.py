"""Changes of grey values and colours, drawn per sample on the CPU and applied to the whole batch on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from segtrain.settings import IntensitySettings
from synth.core.rng import derive_seed

LOW_RES_STEPS = 4

# Luma and the two chroma axes of NTSC: in this basis saturation scales, and hue turns, the chroma plane.
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
                       dtype=torch.float64)


@dataclass(frozen=True)
class Intensity:
    """Drawn changes of B samples, all on the CPU, each (B,) unless said.

    Attributes:
        gain, contrast, gamma: factors and exponent; 1 changes nothing. colour: matrices (B, 3, 3).
        blur_px: Gaussian sigma. resolution: share kept. noise: sigma, share of the range. noise_seed: of its pixels.
        inverted: exponent of one more curve, on the inverted image. retain_stats: of the curves, for all samples.
    """

    gain: torch.Tensor
    contrast: torch.Tensor
    gamma: torch.Tensor
    colour: torch.Tensor
    blur_px: torch.Tensor
    resolution: torch.Tensor
    noise: torch.Tensor
    noise_seed: tuple[int, ...]
    inverted: torch.Tensor | None = None
    retain_stats: bool = False


def draw_intensity(rngs: Sequence[torch.Generator], settings: IntensitySettings) -> Intensity:
    """Returns one change per generator; row i depends on `rngs[i]` alone."""
    u = torch.stack([torch.rand(13, generator=rng, dtype=torch.float64) for rng in rngs])
    sym = 2 * u - 1
    coloured = (u[:, 0] < settings.p_colour).double()
    brighter, contrasted, curved, inverted = _hits(coloured, rngs, settings)
    gamma = torch.exp(curved * sym[:, 3] * math.log1p(settings.gamma))
    # A few resolutions instead of any: each is one resize of all the rows that share it.
    level = ((u[:, 9] * LOW_RES_STEPS).floor() + 1) / LOW_RES_STEPS
    resolution = 1 + (u[:, 8] < settings.p_low_res) * level * (settings.low_res - 1)
    return Intensity(
        gain=1 + brighter * settings.brightness * sym[:, 1], contrast=1 + contrasted * settings.contrast * sym[:, 2],
        gamma=gamma, colour=_colour(1 + coloured * settings.saturation * sym[:, 4],
                                    2 * math.pi * coloured * settings.hue * sym[:, 5]),
        blur_px=(u[:, 6] < settings.p_blur) * settings.blur_px * u[:, 7], resolution=resolution,
        noise=(u[:, 10] < settings.p_noise) * settings.noise * u[:, 11],
        noise_seed=tuple(derive_seed(0, str(x)) for x in u[:, 12].tolist()),
        inverted=torch.exp(inverted * math.log1p(settings.gamma)), retain_stats=settings.retain_stats)


def _hits(coloured: torch.Tensor, rngs: Sequence[torch.Generator], settings: IntensitySettings) -> list[torch.Tensor]:
    # Which rows get brightness, contrast and gamma: those that get colours, or a share of their own. Last, how far and
    # which way in [-1, 1] the inverted curve bends, 0 where there is none.
    u = torch.stack([torch.rand(5, generator=rng, dtype=torch.float64) for rng in rngs])
    own = (settings.p_brightness, settings.p_contrast, settings.p_gamma)
    hits = [coloured if p is None else (u[:, i] < p).double() for i, p in enumerate(own)]
    return [*hits, (u[:, 3] < settings.p_invert) * (2 * u[:, 4] - 1)]


def _colour(saturation: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).reshape(-1, 3, 3)
    return torch.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ


def apply_intensity(images: torch.Tensor, params: Intensity) -> torch.Tensor:
    """Returns unit images (B, C, H, W) after blur, lower resolution, colour, gain, contrast, gamma and noise."""
    x = _blur(images, params.blur_px)
    x = (_low_res(x, params.resolution) + 1) / 2
    if x.shape[1] == 3:
        x = torch.einsum("bij,bjhw->bihw", params.colour.to(x), x)
    mean = x.mean(dim=(2, 3), keepdim=True)
    x = (x - mean) * _column(params.contrast, x) + mean * _column(params.gain, x)
    x = x.clamp(0, 1)
    if params.inverted is not None and (params.inverted != 1).any():
        bent = 1 - _curve(1 - x, params.inverted, retain_stats=params.retain_stats).clamp(0, 1)
        x = torch.where(_column(params.inverted, x) == 1, x, bent)
    x = _curve(x, params.gamma, retain_stats=params.retain_stats)
    return (_add_noise(x, params) * 2 - 1).clamp(-1, 1)


def _curve(x: torch.Tensor, gamma: torch.Tensor, *, retain_stats: bool) -> torch.Tensor:
    # x ** gamma of values in [0, 1], each channel's mean and deviation put back if asked for (nnU-Net's retain_stats).
    curved = x ** _column(gamma, x)
    if not retain_stats:
        return curved
    sd, mean = torch.std_mean(x, dim=(2, 3), keepdim=True, correction=0)
    new_sd, new_mean = torch.std_mean(curved, dim=(2, 3), keepdim=True, correction=0)
    kept = (curved - new_mean) * (sd / new_sd.clamp_min(1e-7)) + mean
    return torch.where(_column(gamma, x) == 1, x, kept)  # rows without a curve stay as they are, bit for bit


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like)[:, None, None, None]


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    rows = (sigma > 0.05).nonzero()[:, 0]
    if not len(rows):
        return images
    some = images[rows.to(images.device)]
    reach = min(math.ceil(3 * float(sigma.max())), some.shape[-1] - 1, some.shape[-2] - 1)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (steps / sigma[rows, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(some).repeat_interleave(some.shape[1], 0)[:, None, None]
    flat = some.reshape(1, -1, *some.shape[2:])
    for turned, pad in ((kernel, (reach, reach, 0, 0)), (kernel.mT, (0, 0, reach, reach))):
        flat = F.conv2d(F.pad(flat, pad, mode="reflect"), turned, groups=flat.shape[1])
    return images.index_copy(0, rows.to(images.device), flat.reshape(some.shape))


def _low_res(images: torch.Tensor, resolution: torch.Tensor) -> torch.Tensor:
    size = images.shape[-2:]
    for share in resolution[resolution < 1].unique().tolist():
        rows = (resolution == share).nonzero()[:, 0].to(images.device)
        small = F.interpolate(images[rows], [max(1, round(s * share)) for s in size], mode="nearest-exact")
        images = images.index_copy(0, rows, F.interpolate(small, size, mode="bilinear", align_corners=False))
    return images


def _add_noise(images: torch.Tensor, params: Intensity) -> torch.Tensor:
    rows = params.noise.nonzero()[:, 0].tolist()
    if not rows:
        return images
    images = images.clone()
    for i in rows:
        rng = torch.Generator(images.device).manual_seed(params.noise_seed[i])
        images[i] += float(params.noise[i]) * torch.randn(images.shape[1:], generator=rng, device=images.device)
    return images
