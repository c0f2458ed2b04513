"""The latent denoiser: network, noise schedule, and its v-prediction recipe."""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel

from synth.core.ema import Ema
from synth.core.loop import Batch, Batches, Recipe, cosine
from synth.core.rng import derive_seed
from synth.diffusion.autoencoder import LatentStatistics, rows_of
from synth.diffusion.settings import DenoiserSettings


def build_denoiser(settings: DenoiserSettings, *, latent_channels: int, latent_size: int) -> UNet2DModel:
    """Returns an untrained UNet2DModel on latents (B, latent_channels, latent_size, latent_size)."""
    down = tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in settings.attention)
    up = tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(settings.attention))
    group = math.gcd(32, *settings.widths)  # 32, but for nets too small for it
    return UNet2DModel(
        sample_size=latent_size, in_channels=latent_channels, out_channels=latent_channels,
        block_out_channels=settings.widths, layers_per_block=settings.layers, down_block_types=down,
        up_block_types=up, attention_head_dim=group, norm_num_groups=group, dropout=settings.dropout)


def build_scheduler() -> DDIMScheduler:
    """Returns the noise schedule: scaled-linear betas of latent diffusion, rescaled to zero terminal signal.

    Without the rescaling (Lin et al. 2024) sampling starts from a level that training never saw, and every image
    drifts to medium brightness. v-prediction is what makes the zero-signal level well defined.
    """
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def velocity(clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Returns v = sqrt(a) noise - sqrt(1 - a) clean, all (B, c, h, w), a = cumulative alpha (B,).

    Salimans & Ho 2022, appendix D.
    """
    a = alpha.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * clean


class DenoiserRecipe(Recipe):
    """v-prediction with min-SNR weighting: min(SNR, gamma) / (SNR + 1) (Hang et al. 2023, v form)."""

    def __init__(self, unet: UNet2DModel, alphas: torch.Tensor, settings: DenoiserSettings) -> None:
        super().__init__()
        self.settings = settings
        self.alphas = alphas
        self.nets["unet"] = unet
        self.averages["unet"] = Ema(unet, decay=settings.ema_decay)
        self.optimizers["unet"] = torch.optim.AdamW(
            unet.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99))

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Updates the denoiser on latents (B, c, h, w) given as mean and log-variance; returns the scalar loss."""
        mean, logvar = batch["mean"], batch["logvar"]
        clean = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        noise = torch.randn_like(clean)
        # Stratified over the batch: the same law for each image, less variance between steps.
        b = len(clean)
        u = (torch.arange(b, device=clean.device) + torch.rand(b, device=clean.device)) / b
        t = (u * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas.to(clean.device)[t]
        a = alpha.view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        predicted = self.nets["unet"](noisy, t).sample
        error = (predicted - velocity(clean, noise, alpha)).square().mean(dim=(1, 2, 3))
        # SNR = a / (1 - a), so SNR + 1 = 1 / (1 - a); at zero signal the weight would vanish, hence the floor.
        snr = a.flatten() / (1 - a.flatten()).clamp(min=1e-8)
        weight = (snr.clamp(max=self.settings.snr_gamma) * (1 - a.flatten())).clamp(min=0.05)
        loss = (weight * error).mean()
        self.optimizers["unet"].zero_grad(set_to_none=True)
        self.backward(loss)
        self.clip(self.nets["unet"].parameters(), 1.0)
        self.optimizers["unet"].step()
        self.averages["unet"].update(self.nets["unet"])
        return {"loss": loss.detach(), "v_mse": error.mean().detach()}

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns the number of images in the batch."""
        return {"images_seen": len(batch["mean"])}

    def lr_factor(self, progress: float) -> float:
        """Returns warm-up, then cosine."""
        return cosine(progress)


def latent_batches(views: list[LatentStatistics], *, shift: float, scale: float, batch_size: int, seed: int) -> Batches:
    """Returns batches of standardised latent statistics: each image equally often, one of its views at random."""
    means = torch.stack([(v.mean - shift) * scale for v in views])  # (V, N, c, h, w)
    logvars = torch.stack([v.logvar + 2 * float(np.log(scale)) for v in views])

    def batches(step: int, rank: int, n_ranks: int) -> Batch:
        rows = rows_of(step, rank, n_ranks, n=means.shape[1], batch_size=batch_size, seed=seed)
        view = np.random.default_rng(derive_seed(seed, "view", step, rank)).integers(len(views), size=len(rows))
        return {"mean": means[view, rows], "logvar": logvars[view, rows]}

    return batches
