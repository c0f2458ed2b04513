"""What a denoiser works on: latents of an autoencoder, or the pixels themselves. One set of functions for all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from synth.core.checks import UserError
from synth.core.files import hash_json
from synth.pipelines import own_config, weights_hash

LOG_OF_NOTHING = -60.0
"""Log-variance of a latent that has none."""


class PixelCodec(ModelMixin, ConfigMixin):
    """Pixel space as latents: nothing is lost. `patch` x `patch` pixels become channels (Hoogeboom et al. 2023, 3.3).

    Moving pixels into channels is orthonormal, so white noise stays white and diffusion in these latents *is* diffusion
    in pixels, at the cost of a network `patch` times coarser.
    """

    @register_to_config
    def __init__(self, in_channels: int = 3, sample_size: int = 64, patch: int = 2, shift_factor: float = 0.0,
                 scaling_factor: float = 1.0) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)  # gives the module a device and a file

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns latents (B, C p^2, H/p, W/p) of unit images (B, C, H, W)."""
        return F.pixel_unshuffle(images, self.config.patch)


Codec = AutoencoderKL | AutoencoderTiny | PixelCodec


def latent_factor(codec: Codec) -> int:
    """Returns the pixels per latent cell side."""
    if isinstance(codec, PixelCodec):
        return int(codec.config.patch)
    if isinstance(codec, AutoencoderTiny):
        return 2 ** (len(codec.config.encoder_block_out_channels) - 1)
    return 2 ** (len(codec.config.block_out_channels) - 1)


def latent_channels(codec: Codec) -> int:
    """Returns the channels of a latent."""
    if isinstance(codec, PixelCodec):
        return int(codec.config.in_channels * codec.config.patch**2)
    return int(codec.config.latent_channels)


def codec_hash(codec: Codec) -> str:
    """Returns 16 hexadecimal digits over weights and configuration, wherever they lie."""
    return hash_json({"kind": type(codec).__name__, "config": own_config(codec), "weights": weights_hash(codec)})


def _moments(codec: Codec) -> tuple[float, float]:
    shift, scale = codec.config.get("shift_factor"), codec.config.get("scaling_factor")
    return float(shift or 0.0), float(1.0 if scale is None else scale)


def encode_moments(codec: Codec, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and log-variance of the raw latents, each (B, c, h, w), of unit images (B, C, H, W)."""
    if isinstance(codec, AutoencoderKL):
        posterior = codec.encode(images).latent_dist
        return posterior.mean, posterior.logvar
    mean = codec(images) if isinstance(codec, PixelCodec) else codec.encode(images).latents
    return mean, torch.full_like(mean, LOG_OF_NOTHING)


def unit_to_latents(codec: Codec, images: torch.Tensor) -> torch.Tensor:
    """Returns the standardised mean latents (B, c, h, w) of unit images (B, C, H, W)."""
    shift, scale = _moments(codec)
    return (encode_moments(codec, images)[0] - shift) * scale


def latents_to_unit(codec: Codec, latents: torch.Tensor) -> torch.Tensor:
    """Returns the unit images (B, C, H, W) of standardised latents (B, c, h, w)."""
    shift, scale = _moments(codec)
    raw = latents / scale + shift
    if isinstance(codec, PixelCodec):
        return F.pixel_shuffle(raw, codec.config.patch).clamp(-1, 1)
    return codec.decode(raw).sample.clamp(-1, 1)


def load_codec(folder: str | Path, *, channels: int) -> Codec:
    """Returns the autoencoder saved in a local diffusers folder: AutoencoderKL, AutoencoderTiny or PixelCodec.

    Raises:
        UserError: if there is none of these, or it is made for another number of channels.
    """
    kinds = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, PixelCodec)}
    if not (Path(folder) / "config.json").is_file():
        raise UserError(str(folder), rule="no autoencoder is there (no config.json)",
                        repair="give a local folder written by save_pretrained; nothing is downloaded")
    name = AutoencoderKL.load_config(folder, local_files_only=True).get("_class_name")
    if name not in kinds:
        raise UserError(str(folder), rule=f"{name} is none of {', '.join(kinds)}", repair="give the folder of one")
    codec = kinds[name].from_pretrained(folder, local_files_only=True, use_safetensors=True)
    if codec.config.in_channels != channels:
        raise UserError(str(folder), rule=f"it reads {codec.config.in_channels} channel(s), the images have {channels}",
                        repair=f"give data.channels={codec.config.in_channels}, or another autoencoder")
    return codec


SMALL_STRUCTURE_PX = 16
"""Structures thinner than this lose too much to a latent grid: they are painted in pixels."""


def choose_space(thinnest_px: float | None) -> Literal["kl", "pixels"]:
    """Returns where to paint when the settings leave it open: in pixels where the median object is under 16 px across.

    There the latent grid is as coarse as what it must show. Pixels need many more steps of training than latents.
    """
    return "pixels" if thinnest_px is not None and thinnest_px < SMALL_STRUCTURE_PX else "kl"
