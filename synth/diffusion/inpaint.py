"""InpaintPipeline: keeps the annotated foreground at every noise level and paints a new surrounding (AugPaint)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils import BaseOutput
from PIL import Image

from synth.core.checks import UserError
from synth.core.files import hash_json, sha256
from synth.core.rng import randn_each, sample_rng
from synth.core.space import from_channels, labels_to_keep, unit_to_pixels
from synth.diffusion.autoencoder import latents_to_unit, unit_to_latents
from synth.diffusion.samplers import Denoise, Known, n_evaluations, resampling_walk, sample_ddim
from synth.generator import Generator, check_request


@dataclass
class InpaintOutput(BaseOutput):
    """Painted images: unit (B, C, H, W) for "pt", (B, H, W, C) in [0, 1] for "np", a list for "pil"."""

    images: torch.Tensor | np.ndarray | list[Image.Image]


def keep_to_latent(keep: torch.Tensor, *, factor: int, margin_cells: int) -> torch.Tensor:
    """Returns the latent keep mask (B, 1, h, w) bool of keep (B, H, W) bool: max-pooled, grown by `margin_cells`.

    Max-pooling never hands a foreground pixel to the generator; nearest sampling repaints a third of a thin wall.
    """
    pooled = F.max_pool2d(keep[:, None].float(), factor)
    if margin_cells:
        pooled = F.max_pool2d(pooled, 2 * margin_cells + 1, stride=1, padding=margin_cells)
    return pooled > 0.5


def blend_alpha(keep: torch.Tensor, *, width_px: int) -> torch.Tensor:
    """Returns the weight of the source image, (B, 1, H, W): 1 on keep (B, H, W), 0 beyond `width_px`, smooth between.

    The mask is dilated first and then blurred by as much, so that every foreground pixel has weight exactly 1 and
    the transition lies outside the label.
    """
    r = width_px // 2
    grown = F.max_pool2d(keep[:, None].float(), 2 * r + 1, stride=1, padding=r)
    kernel = torch.hann_window(2 * r + 3, periodic=False, device=keep.device)[1:-1]
    kernel = kernel / kernel.sum()
    smooth = F.conv2d(F.pad(grown, (r, r, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    smooth = F.conv2d(F.pad(smooth, (0, 0, r, r), mode="replicate"), kernel.view(1, 1, -1, 1))
    return torch.where(keep[:, None], 1.0, smooth.clamp(0, 1))


def _seeds(n: int, seeds: Sequence[int] | None,
           generator: torch.Generator | Sequence[torch.Generator] | None) -> Sequence[int]:
    """Returns one seed per image: as given, or drawn from the generator(s)."""
    if seeds is not None and generator is not None:
        raise UserError("seeds and generator", rule="both say where the noise comes from", repair="give one of them")
    if seeds is not None:
        return seeds
    if isinstance(generator, Sequence):
        return [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generator]
    device = generator.device if generator is not None else "cpu"
    return torch.randint(2**62, (n,), generator=generator, device=device).tolist()


class InpaintPipeline(DiffusionPipeline, Generator):
    """Latent-diffusion inpainting with an unconditional denoiser (AugPaint, arXiv 2506.23038; RePaint resampling).

    Args:
        vae: autoencoder whose config carries shift_factor and scaling_factor of its training latents.
        unet: denoiser of standardised latents. scheduler: gives the noise levels; any scheduler with
            `alphas_cumprod` and v- or epsilon-prediction may be swapped in.
        n_steps, jump_length, jump_repeats, eta, margin_cells: defaults of a call, see `SamplerSettings`.
        unit_low, unit_high: pixel values that are -1 and 1 in unit space.
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(self, vae: AutoencoderKL, unet: UNet2DModel, scheduler: DDIMScheduler, n_steps: int = 50,  # noqa: PLR0913
                 jump_length: int = 5, jump_repeats: int = 1, eta: float = 1.0, margin_cells: int = 1,
                 unit_low: float = 0.0, unit_high: float = 255.0) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.register_to_config(n_steps=n_steps, jump_length=jump_length, jump_repeats=jump_repeats, eta=eta,
                                margin_cells=margin_cells, unit_low=unit_low, unit_high=unit_high)

    @property
    def factor(self) -> int:
        """Pixels per latent cell side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """Side of the images it draws, px."""
        return int(self.vae.config.sample_size)

    @property
    def channels(self) -> int:
        """Channels of the images it draws."""
        return int(self.vae.config.in_channels)

    @property
    def intensity_range(self) -> tuple[float, float]:
        """Pixel values that are -1 and 1 in unit space."""
        return float(self.config.unit_low), float(self.config.unit_high)

    def sampler_settings(self) -> dict[str, float | int | str]:
        """Returns every setting that `sample` uses."""
        keys = ("n_steps", "jump_length", "jump_repeats", "eta", "margin_cells")
        return {"sampler": "ddim", "scheduler": type(self.scheduler).__name__, **{k: self.config[k] for k in keys}}

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits over weights and configuration of all parts, and the sampler settings."""
        parts: dict[str, object] = {"sampler": self.sampler_settings(), "range": self.intensity_range,
                                    "alphas": sha256(self.scheduler.alphas_cumprod.numpy().tobytes())}
        for name, part in (("vae", self.vae), ("unet", self.unet), ("scheduler", self.scheduler)):
            # Keys that begin with "_" say where a part was loaded from and by which version, not what it is.
            parts[f"{name}_config"] = {k: v for k, v in part.config.items() if not k.startswith("_")}
        for name, net in (("vae", self.vae), ("unet", self.unet)):
            weights = b"".join(v.detach().cpu().contiguous().numpy().tobytes() for v in net.state_dict().values())
            parts[name] = sha256(weights)
        return hash_json(parts)

    def levels(self, n_steps: int, *, strength: float = 1.0) -> tuple[torch.Tensor, list[int]]:
        """Returns cumulative alphas (n + 1,) of levels 0..n, and the network's timestep of levels 1..n."""
        self.scheduler.set_timesteps(n_steps)
        steps = [int(t) for t in self.scheduler.timesteps][::-1]
        steps = steps[:max(1, round(strength * len(steps)))]
        return torch.cat([torch.ones(1), self.scheduler.alphas_cumprod[steps].cpu()]), steps

    def _denoise(self, alphas: torch.Tensor, steps: list[int]) -> Denoise:
        kind = self.scheduler.config.prediction_type
        if kind not in ("v_prediction", "epsilon"):
            raise UserError(f"prediction_type={kind}", rule="the denoiser predicts v or epsilon",
                            repair="swap in a scheduler made with from_config(pipeline.scheduler.config)")

        def denoise(latents: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
            """Returns clean latents and noise, both (B, c, h, w)."""
            a = alphas[level]
            out = self.unet(latents, torch.full((len(latents),), steps[level - 1], device=latents.device)).sample
            if kind == "v_prediction":
                return a.sqrt() * latents - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * latents
            return (latents - (1 - a).sqrt() * out) / a.sqrt().clamp(min=1e-4), out

        return denoise

    @torch.no_grad()
    def paint(self, image: torch.Tensor, keep: torch.Tensor, *, seeds: Sequence[int], n_steps: int | None = None,
              strength: float = 1.0, callback: Callable[[int, int], None] | None = None) -> torch.Tensor:
        """Returns painted unit images (B, C, H, W); `image` (B, C, H, W) shows through where keep (B, H, W) is True.

        Args:
            strength: in (0, 1]; below 1 painting starts from the source noised to that share of the levels.
            callback: called with (evaluations done, evaluations in all).

        Raises:
            UserError: if sizes or seeds do not fit, or `strength` is out of range.
        """
        check_request(self, image, keep, seeds=seeds)
        if not 0 < strength <= 1:
            raise UserError(f"strength={strength}", rule="it lies in (0, 1]", repair="write strength=1.0")
        image, keep = image.to(self.device), keep.to(self.device)
        alphas, steps = self.levels(n_steps or self.config.n_steps, strength=strength)
        alphas = alphas.to(self.device)
        walk = resampling_walk(len(steps), jump_length=self.config.jump_length, jump_repeats=self.config.jump_repeats)
        rngs = [sample_rng(s, "paint") for s in seeds]
        source = unit_to_latents(self.vae, image)
        latents = randn_each(source.shape[1:], rngs, self.device)
        if strength < 1:  # else pure noise: nothing of the old surrounding may leak in
            top = alphas[len(steps)]
            latents = top.sqrt() * source + (1 - top).sqrt() * latents
        known = Known(source, keep_to_latent(keep, factor=self.factor, margin_cells=self.config.margin_cells),
                      [sample_rng(s, "known") for s in seeds])
        denoise = self._denoise(alphas, steps)
        done, total = [0], n_evaluations(len(steps), jump_length=self.config.jump_length,
                                         jump_repeats=self.config.jump_repeats)

        def counted(z: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
            """Returns what `denoise` says of z (B, c, h, w), after telling the callback."""
            done[0] += 1
            if callback is not None:
                callback(done[0], total)
            return denoise(z, level)

        latents = sample_ddim(counted, latents, alphas, walk=walk, rngs=rngs, eta=self.config.eta, known=known)
        painted = latents_to_unit(self.vae, latents)
        alpha = blend_alpha(keep, width_px=self.factor)
        return alpha * image + (1 - alpha) * painted

    def sample(self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int]) -> torch.Tensor:
        """Returns new surroundings for the foreground of labels `mask` (B, H, W) in `image`, unit (B, C, H, W)."""
        return self.paint(image, labels_to_keep(mask), seeds=seeds).cpu()

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - the names that users of diffusers know
        self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, num_inference_steps: int | None = None,
        strength: float = 1.0, output_type: str = "pil",
        callback_on_step_end: Callable[[int, int], None] | None = None,
    ) -> InpaintOutput:
        """Returns painted images for unit `image` (B, C, H, W) and its labels `mask` (B, H, W).

        Args:
            seeds: one per image. generator: in the place of seeds: one for all images or one for each, from which the
                seeds are drawn. Without either the images are not repeatable.
            output_type: "pil", "np" or "pt".
            callback_on_step_end: called with (evaluations done, evaluations in all).

        Raises:
            UserError: as `paint`, or for an unknown `output_type`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type={output_type}", rule="no such form", repair="take pil, np or pt")
        with self.progress_bar(total=1) as bar:
            def tick(done: int, total: int) -> None:
                bar.total = total
                bar.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(done, total)

            unit = self.paint(image, labels_to_keep(mask), seeds=_seeds(len(image), seeds, generator),
                              n_steps=num_inference_steps, strength=strength, callback=tick).cpu()
        if output_type == "pt":
            return InpaintOutput(images=unit)
        if output_type == "np":
            return InpaintOutput(images=((unit + 1) / 2).permute(0, 2, 3, 1).numpy())
        pixels = unit_to_pixels(unit, (0.0, 255.0), np.dtype(np.uint8))
        return InpaintOutput(images=[Image.fromarray(from_channels(p)) for p in pixels])
