"""Settings of the inpainting engine; every default of it stands here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synth.core.config import Settings
from synth.core.loop import LoopSettings


class DataSettings(Settings):
    """Where the real data lie; folders in any supported format."""

    labelled: str | None = None
    unlabelled: str | None = None
    mask_map: str | None = None
    channels: Literal[1, 3] | None = None


class AutoencoderSettings(Settings):
    """The KL autoencoder. Down-sampling f = 2^(len(widths) - 1): three widths give f = 4."""

    widths: tuple[int, ...] = (64, 128, 128)
    layers: int = Field(1, ge=1)
    latent_channels: int = Field(4, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(1e-3, gt=0)
    gradient_weight: float = Field(1.0, ge=0)
    kl_weight: float = Field(1e-6, ge=0)
    loop: LoopSettings = LoopSettings(steps=10000)


class DenoiserSettings(Settings):
    """The unconditional latent denoiser, v-prediction.

    Attributes:
        n_views: cached latents per training image: the image, then random zooms (and flips, if `flip`) of it.
        attention: which resolutions, from fine to coarse, use self-attention.
    """

    widths: tuple[int, ...] = (128, 256, 384)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    snr_gamma: float = Field(5.0, gt=0)
    n_views: int = Field(4, ge=1)
    flip: bool = True
    zoom: float = Field(1.2, ge=1)
    loop: LoopSettings = LoopSettings(steps=20000)


class SamplerSettings(Settings):
    """How a pair is painted.

    Attributes:
        n_steps: noise levels; jump_length, jump_repeats: RePaint's resampling (repeats 1 = none).
        eta: 0 = DDIM, 1 = ancestral. margin_cells: latent cells by which the keep mask is grown.
    """

    n_steps: int = Field(50, ge=1)
    jump_length: int = Field(5, ge=1)
    jump_repeats: int = Field(1, ge=1)
    eta: float = Field(1.0, ge=0, le=1)
    margin_cells: int = Field(1, ge=0)


class InpaintSettings(Settings):
    """Everything `synth fit configs/inpaint.yaml` reads."""

    kind: Literal["inpaint"] = "inpaint"
    size: int = Field(128, ge=16)
    data: DataSettings = DataSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    denoiser: DenoiserSettings = DenoiserSettings()
    sampler: SamplerSettings = SamplerSettings()
    out: str | None = None
