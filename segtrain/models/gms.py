"""GMS: a mapping from the latents of an image to the latents of its mask, between the halves of a frozen autoencoder.

Huo et al. 2025 (Generative medical segmentation). The autoencoder knows images; a mask is one, too, once each class has
a colour. What the mapping is asked for is a whole mask image, so it errs in other ways than a network that is asked
pixel by pixel, and in other places than a U-Net: it has neither its skips nor its pyramid. Details below the
autoencoder's grid are lost, how many is for `latent_map` to measure before anything is trained.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from segtrain.models.segnet import Features, SegNet, Widths
from segtrain.models.tiny import group_norm
from segtrain.settings import ModelSettings
from synth.core.checks import UserError
from synth.core.files import hash_json, sha256

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SHARPNESS = 8.0
"""Difference of logits between two neighbouring classes where a pixel has exactly the colour of one of them."""


def palette(n_classes: int, channels: int) -> torch.Tensor:
    """Returns the colours (K, C) of the classes in unit space: black for background, white for the first class.

    Each further one is that of the coarsest grid that is farthest from all before.
    """
    n_levels = next(m for m in range(2, n_classes + 1) if m**channels >= n_classes)
    grid = torch.tensor(list(product(torch.linspace(-1, 1, n_levels).tolist(), repeat=channels)))
    chosen = [0, len(grid) - 1]
    while len(chosen) < n_classes:
        chosen.append(int(torch.cdist(grid, grid[chosen]).amin(dim=1).argmax()))
    return grid[chosen]


class LatentEncoder(nn.Module):
    """The frozen first half: unit images (or masks as images) -> standardised latents (B, c, h, w).

    In training half of the images' latents are drawn from their posterior, else they are its mean.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder, self.quant, self.channels = vae.encoder, vae.quant_conv, vae.config.in_channels
        self.shift, self.scale = _moments(vae)

    @torch.no_grad()
    def latents(self, images: torch.Tensor, *, drawn: torch.Tensor | None = None) -> torch.Tensor:
        """Returns latents (B, c, h, w) of unit images (B, C, H, W), those of the rows `drawn` (B,) bool with noise."""
        raw = self.encoder(images.expand(-1, self.channels, -1, -1))
        mean, log_variance = (raw if self.quant is None else self.quant(raw)).chunk(2, dim=1)
        if drawn is not None:
            noise = torch.randn_like(mean) * (0.5 * log_variance.clamp(-30, 20)).exp()
            mean = torch.where(drawn[:, None, None, None], mean + noise, mean)
        return (mean - self.shift) * self.scale

    def forward(self, images: torch.Tensor) -> Features:
        """Returns the latents (B, c, h, w) of unit images (B, C, H, W), as the one level of features there is."""
        drawn = torch.rand(len(images), device=images.device) < 0.5 if self.training else None
        return [self.latents(images, drawn=drawn)]


class MaskPainter(nn.Module):
    """The frozen second half: latents (B, c, h, w) -> an image, each pixel's class by the nearest colour."""

    def __init__(self, vae: AutoencoderKL, n_classes: int) -> None:
        super().__init__()
        self.quant, self.decoder = vae.post_quant_conv, vae.decoder
        self.shift, self.scale = _moments(vae)
        self.register_buffer("colours", palette(n_classes, vae.config.out_channels))

    def paint(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns labels (B, H, W) below K as unit images (B, C, H, W)."""
        return self.colours[labels].movedim(-1, 1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K, H, W) of standardised latents (B, c, h, w)."""
        raw = latents / self.scale + self.shift
        pixels = self.decoder(raw if self.quant is None else self.quant(raw))
        nearest = torch.cdist(self.colours, self.colours).fill_diagonal_(torch.inf).min()
        apart = (pixels[:, None] - self.colours[None, :, :, None, None]).square().sum(dim=2)
        return -SHARPNESS * apart / nearest.square()


class _Residual(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(group_norm(n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1),
                                    group_norm(n_out), nn.SiLU(), nn.Conv2d(n_out, n_out, 3, padding=1))
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (B, n_out, h, w) of x (B, n_in, h, w)."""
        return self.skip(x) + self.layers(x)


class _Attention(nn.Module):
    """Every cell looks at every cell, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.read, self.out = group_norm(width), nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x (B, D, h, w) with what each cell read added."""
        ask, keys, values = self.read(self.norm(x)).flatten(2).mT[:, None].chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(ask, keys, values)[:, 0].mT
        return x + self.out(seen.reshape(x.shape))


class Mapping(nn.Module):
    """Latents of an image -> latents of its mask: residual blocks of the given widths and one attention, all on the
    autoencoder's own grid."""

    def __init__(self, n_latent: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        blocks = [_Residual(a, b) for a, b in zip((channels[0], *channels), channels, strict=False)]
        last = channels[-1]
        self.layers = nn.Sequential(nn.Conv2d(n_latent, channels[0], 3, padding=1), *blocks, _Attention(last),
                                    _Residual(last, last), group_norm(last), nn.SiLU(),
                                    nn.Conv2d(last, n_latent, 3, padding=1))

    def forward(self, features: Features) -> torch.Tensor:
        """Returns mask latents (B, c, h, w) of the one level of features, image latents (B, c, h, w)."""
        return self.layers(features[-1])




def _moments(vae: AutoencoderKL) -> tuple[float, float]:
    shift, scale = vae.config.get("shift_factor"), vae.config.get("scaling_factor")
    return float(shift or 0.0), float(1.0 if scale is None else scale)


def _home(folder: str) -> Path:
    """Returns where the autoencoder's own files lie: `folder`, or its `vae`.

    Raises:
        UserError: if no AutoencoderKL is there.
    """
    home = Path(folder) / "vae" if (Path(folder) / "vae" / "config.json").is_file() else Path(folder)
    kind = json.loads((home / "config.json").read_text(encoding="utf-8")).get("_class_name") \
        if folder and (home / "config.json").is_file() else None
    if kind != "AutoencoderKL":
        raise UserError(f"model.autoencoder={folder}", rule="gms maps between the latents of an AutoencoderKL, and "
                        f"{'there is none' if kind is None else f'this is a {kind}'}", repair="give the out folder of "
                        "synth fit with autoencoder.kind=kl, or any diffusers folder of one; nothing is downloaded")
    return home


def describe_autoencoder(folder: str) -> str:
    """Returns the configuration of the autoencoder in a folder, and the hash of its weights, as JSON text.

    Raises:
        UserError: if there is none.
    """
    home = _home(folder)
    config = json.loads((home / "config.json").read_text(encoding="utf-8"))
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    weights = [sha256(path.read_bytes()) for path in sorted(home.glob("*.safetensors"))]
    return json.dumps({**own, "_weights": hash_json(weights)}, sort_keys=True)


def _load(autoencoder: str) -> AutoencoderKL:
    from diffusers import AutoencoderKL  # here alone: whoever imports segtrain need not wait for diffusers

    if autoencoder.startswith("{"):  # a saved segmenter, whose file holds these weights too
        config = json.loads(autoencoder)
        return AutoencoderKL.from_config({key: value for key, value in config.items() if not key.startswith("_")})
    return AutoencoderKL.from_pretrained(_home(autoencoder), local_files_only=True, use_safetensors=True)


def gms(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    """Returns the mapping network between the two halves of the autoencoder that `settings.autoencoder` names.

    Raises:
        UserError: if there is none, or it reads fewer channels than the images have.
    """
    vae = _load(settings.autoencoder).requires_grad_(requires_grad=False)
    n_latent, n_seen = vae.config.latent_channels, vae.config.in_channels
    if n_seen != in_channels and in_channels != 1:
        raise UserError(f"model.autoencoder={settings.autoencoder}", rule=f"it reads {n_seen} channel(s), the images "
                        f"have {in_channels}", repair=f"give one of {in_channels} channels, or data.channels=1")
    return SegNet(LatentEncoder(vae), Mapping(n_latent, settings.channels), MaskPainter(vae, n_classes),
                  stride=2 ** (len(vae.config.block_out_channels) - 1), widths=Widths(n_latent, n_latent))
