"""The denoiser: network, preconditioning, what it is told, and its recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import EDMEulerScheduler, UNet2DModel

from synth.core.checks import IGNORE
from synth.core.ema import Ema
from synth.core.loop import Batch, Recipe, cosine
from synth.core.space import labels_to_onehot
from synth.diffusion.settings import DenoiserSettings

SIGMA_DATA = 1.0
"""Standard deviation of standardised latents."""


def n_condition_channels(*, latent_channels: int, n_classes: int) -> int:
    """Returns the channels of `condition`: the known latents, where they are, and the label coverage."""
    return latent_channels + 1 + n_classes


def build_denoiser(settings: DenoiserSettings, *, latent_channels: int, latent_size: int,
                   n_classes: int) -> UNet2DModel:
    """Returns an untrained UNet2DModel from noisy latents and condition (B, *, s, s) to (B, latent_channels, s, s)."""
    down = tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in settings.attention)
    up = tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(settings.attention))
    group = math.gcd(32, *settings.widths)  # 32, but for nets too small for it
    told = n_condition_channels(latent_channels=latent_channels, n_classes=n_classes)
    return UNet2DModel(
        sample_size=latent_size, in_channels=latent_channels + told, out_channels=latent_channels,
        block_out_channels=settings.widths, layers_per_block=settings.layers, down_block_types=down,
        up_block_types=up, attention_head_dim=group, norm_num_groups=group, dropout=settings.dropout)


def build_scheduler(settings: DenoiserSettings) -> EDMEulerScheduler:
    """Returns the noise levels as a diffusers scheduler; others with `sigmas` in EDM's coordinates may replace it."""
    return EDMEulerScheduler(sigma_min=settings.sigma_min, sigma_max=settings.sigma_max, sigma_data=SIGMA_DATA)


def precondition(unet: UNet2DModel, noisy: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Returns the expected clean latents D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), (B, c, h, w).

    Karras et al. 2022, eq. 7 and table 1 (column "Ours"). Sinusoidal embeddings are made for timesteps up to about
    1,000, hence 250 log sigma in the place of log(sigma) / 4.

    Args:
        noisy: x, (B, c, h, w). sigma: (B,). condition: (B, d, h, w), see `condition_of`.
    """
    s = sigma.view(-1, 1, 1, 1)
    total = (s**2 + SIGMA_DATA**2).sqrt()
    c_skip, c_out, c_in = SIGMA_DATA**2 / total**2, s * SIGMA_DATA / total, 1 / total
    out = unet(torch.cat([c_in * noisy, condition], 1), 250 * sigma.log()).sample
    return c_skip * noisy + c_out * out.to(noisy.dtype)


def labels_to_coverage(labels: torch.Tensor, n_classes: int, *, factor: int, batch_size: int = 32) -> torch.Tensor:
    """Returns which share of each latent cell is known to be which class, (B, K, H/factor, W/factor) in [0, 1].

    Channel 0 is the share whose class is known at all, so "no label here" differs from "background here".

    Args:
        labels: (B, H, W), int64 or uint8. batch_size: of them at a time, for each is K maps of 8 bytes on the way.
    """
    parts = []
    for some in labels.split(batch_size):
        onehot = labels_to_onehot(some.long(), n_classes)
        onehot = torch.cat([(some != IGNORE).float()[:, None], onehot[:, 1:]], 1)
        parts.append(F.avg_pool2d(onehot, factor))
    return torch.cat(parts)


def condition_of(clean: torch.Tensor, keep: torch.Tensor, coverage: torch.Tensor) -> torch.Tensor:
    """Returns what the network is told, (B, c + 1 + K, h, w): the kept clean latents, where they are, the labels.

    A network that sees what must stay can match it; one that has it pasted in at every level can only agree by luck,
    and needs many resamplings for it (Saharia et al. 2022, Palette, against Lugmayr et al. 2022).

    Args:
        clean: (B, c, h, w). keep: (B, 1, h, w) bool, nothing True = unconditional.
        coverage: (B, K, h, w), all zero = no label.
    """
    return torch.cat([torch.where(keep, clean, 0.0), keep.to(clean.dtype), coverage.to(clean.dtype)], 1)


@dataclass(frozen=True)
class Told:
    """What the condition of one sampling run is made of: known latents, where, and the labels' coverage."""

    condition: torch.Tensor
    unlabelled: torch.Tensor

    @classmethod
    def of(cls, clean: torch.Tensor, keep: torch.Tensor, coverage: torch.Tensor) -> Told:
        """Returns both conditions, shape (B, c + 1 + K, h, w): with the labels, and without them, for guidance."""
        return cls(condition_of(clean, keep, coverage), condition_of(clean, keep, torch.zeros_like(coverage)))


def guided(unet: UNet2DModel, told: Told, noisy: torch.Tensor, sigma: float, *, guidance: float) -> torch.Tensor:
    """Returns the clean estimate (B, c, h, w) of `noisy` (B, c, h, w), pushed `guidance` times towards the labels.

    Classifier-free guidance (Ho & Salimans 2022, eq. 6, with weight guidance - 1): at 1 one evaluation, else two.
    """
    levels = noisy.new_full((len(noisy),), sigma)
    labelled = precondition(unet, noisy, levels, told.condition)
    if guidance == 1:
        return labelled
    plain = precondition(unet, noisy, levels, told.unlabelled)
    return plain + guidance * (labelled - plain)


class DenoiserRecipe(Recipe):
    """EDM training (Karras et al. 2022, eq. 8 and table 1): log-normal noise levels, loss weight 1 / c_out^2."""

    def __init__(self, unet: UNet2DModel, settings: DenoiserSettings) -> None:
        super().__init__()
        self.settings = settings
        self.nets["unet"] = unet
        self.averages["unet"] = Ema(unet, decay=settings.ema_decay)
        self.optimizers["unet"] = torch.optim.AdamW(
            unet.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99), fused=True)

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Updates the denoiser on latents (B, c, h, w) given as mean and log-variance; returns the scalar loss.

        The batch's keep (B, 1, h, w) and coverage (B, K, h, w) say what the network is told.
        """
        mean, logvar, keep = batch["mean"], batch["logvar"], batch["keep"] > 0.5
        clean = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        b = len(clean)
        # Stratified over the batch: the same law for each image, less variance between steps.
        u = (torch.arange(b, device=clean.device) + torch.rand(b, device=clean.device)) / b
        sigma = (self.settings.p_mean + self.settings.p_std * torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))).exp()
        s = sigma.view(-1, 1, 1, 1)
        noisy = clean + s * torch.randn_like(clean)
        condition = condition_of(clean, keep, batch["coverage"])
        estimate = precondition(self.nets["unet"], noisy, sigma, condition)
        weight = (s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2
        error = weight * (estimate - clean).square()
        # What the network is told costs it nothing to repeat; counting that would only dilute the rest. Foreground,
        # where its place is known, may count more (LeFusion's and LAW's idea).
        foreground = batch["coverage"][:, 1:].sum(1, keepdim=True)
        share = (1 - 0.9 * keep.to(error.dtype)) * (1 + self.settings.foreground_weight * foreground)
        loss = (share * error).sum() / (share.sum() * error.shape[1])
        self.descend(loss, "unet", clip=1.0)
        self.averages["unet"].update(self.nets["unet"])
        return {"loss": loss.detach()}

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns the number of images in the batch."""
        return {"images_seen": len(batch["mean"])}

    def lr_factor(self, progress: float) -> float:
        """Returns warm-up, then cosine."""
        return cosine(progress)
