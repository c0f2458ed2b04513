"""The KL autoencoder: network, recipe, and the cached statistics of its latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from synth.core.checks import UserError
from synth.core.loop import Batch, Batches, Recipe, cosine
from synth.core.pairs import Arrays
from synth.core.rng import derive_seed
from synth.core.space import pixels_to_unit
from synth.diffusion.settings import AutoencoderSettings


def build_autoencoder(settings: AutoencoderSettings, *, channels: int, size: int) -> AutoencoderKL:
    """Returns an untrained diffusers AutoencoderKL for images (B, channels, size, size)."""
    n = len(settings.widths)
    return AutoencoderKL(
        in_channels=channels, out_channels=channels, latent_channels=settings.latent_channels, sample_size=size,
        down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=settings.widths, layers_per_block=settings.layers, norm_num_groups=8,
        mid_block_add_attention=False)


def gradient_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the scalar L1 distance of the image gradients of a and b, (B, C, H, W), at full and half resolution.

    L1 alone blurs: half a grey level of texture costs as little as half a grey level of offset.
    """
    total = a.new_zeros(())
    for scale in (1, 2):
        x, y = (a, b) if scale == 1 else (F.avg_pool2d(a, 2), F.avg_pool2d(b, 2))
        d = x - y
        total = total + d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
    return total


class AutoencoderRecipe(Recipe):
    """L1 + gradient L1 + a small KL term (Rombach et al. 2022, eq. 25, without the discriminator)."""

    def __init__(self, vae: AutoencoderKL, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.nets["vae"] = vae
        self.optimizers["vae"] = torch.optim.AdamW(vae.parameters(), lr=settings.lr, betas=(0.9, 0.99))

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Updates the autoencoder on unit images (B, C, H, W); returns the scalars of its loss."""
        images = batch["images"]
        # Through forward(), not encode() and decode(): data-parallel wrappers synchronise gradients in forward.
        posterior, decoded = self.nets["vae"](images)
        kl = posterior.kl().mean()
        l1, grad = F.l1_loss(decoded, images), gradient_l1(decoded, images)
        loss = l1 + self.settings.gradient_weight * grad + self.settings.kl_weight * kl
        self.optimizers["vae"].zero_grad(set_to_none=True)
        self.backward(loss)
        self.clip(self.nets["vae"].parameters(), 1.0)
        self.optimizers["vae"].step()
        return {"l1": l1.detach(), "gradient": grad.detach(), "kl": kl.detach()}

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns the number of images in the batch."""
        return {"images_seen": len(batch["images"])}

    def lr_factor(self, progress: float) -> float:
        """Returns warm-up, then cosine."""
        return cosine(progress)


class _Forward(torch.nn.Module):
    """Autoencoder whose forward returns (posterior, decoded sample), with noise from the global, seeded generator."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor) -> tuple[object, torch.Tensor]:
        """Returns the posterior and a decoded sample of it, (B, C, S, S), of unit images (B, C, S, S)."""
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn_like(posterior.std)
        return posterior, self.vae.decode(latents).sample


def autoencoder_recipe(vae: AutoencoderKL, settings: AutoencoderSettings) -> AutoencoderRecipe:
    """Returns the recipe that trains `vae` in place."""
    return AutoencoderRecipe(_Forward(vae), settings)


def rows_of(step: int, rank: int, n_ranks: int, *, n: int, batch_size: int, seed: int) -> list[int]:
    """Returns this rank's rows of a step's batch: epochs of seeded permutations, cut into batches.

    Raises:
        UserError: if the batch cannot be shared evenly.
    """
    if batch_size % n_ranks:
        raise UserError(f"batch_size={batch_size}", rule=f"it is no multiple of the {n_ranks} processes",
                        repair="change batch_size or the number of processes")
    rows = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, n)
        order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(n)
        rows.append(int(order[offset]))
    return rows[rank::n_ranks]


def image_batches(arrays: Arrays, *, batch_size: int, seed: int, flip: bool) -> Batches:
    """Returns batches of unit images (B, C, S, S), mirrored at random if `flip`."""
    def batches(step: int, rank: int, n_ranks: int) -> Batch:
        rows = rows_of(step, rank, n_ranks, n=len(arrays), batch_size=batch_size, seed=seed)
        images = pixels_to_unit(arrays.images[rows], arrays.info.intensity_range)
        if flip:
            coin = np.random.default_rng(derive_seed(seed, "flip", step, rank)).random(len(rows)) < 0.5
            images = torch.where(torch.from_numpy(coin)[:, None, None, None], images.flip(-1), images)
        return {"images": images}

    return batches


@dataclass(frozen=True)
class LatentStatistics:
    """Posterior of every training view: mean and log-variance, (M, c, h, w). Not samples of it: cached samples would
    freeze a part of the latent variance as noise that the denoiser must learn by heart."""

    mean: torch.Tensor
    logvar: torch.Tensor


@torch.no_grad()
def encode_statistics(vae: AutoencoderKL, images: torch.Tensor, *, batch_size: int = 32) -> LatentStatistics:
    """Returns the latent statistics of unit images (M, C, S, S), on the CPU."""
    means, logvars = [], []
    for chunk in images.split(batch_size):
        posterior = vae.encode(chunk.to(vae.device)).latent_dist
        means.append(posterior.mean.cpu())
        logvars.append(posterior.logvar.cpu())
    return LatentStatistics(torch.cat(means), torch.cat(logvars))


def standardise(vae: AutoencoderKL, statistics: LatentStatistics) -> None:
    """Registers in `vae.config` the shift and scale that give training latents (M, c, h, w) mean 0 and std 1."""
    variance = statistics.mean.var() + statistics.logvar.exp().mean()
    vae.register_to_config(shift_factor=float(statistics.mean.mean()), scaling_factor=float(variance.rsqrt()))


def unit_to_latents(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Returns the standardised mean latents (B, c, h, w) of unit images (B, C, S, S)."""
    return (vae.encode(images).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor


def latents_to_unit(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Returns the unit images (B, C, S, S) of standardised latents (B, c, h, w)."""
    return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample.clamp(-1, 1)
