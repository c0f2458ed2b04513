"""The ways of painting that are compared: ours, naive DDIM with pasted latents, and diffusers' own RePaint.

All of them call one and the same network. Ours is told what it must match; the two others are told nothing (zero
condition, which the network was trained with too), so what they keep is pasted in at every noise level: that is
inpainting as it is usually done with an unconditional model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import RePaintScheduler

from synth.audit import generator_shown
from synth.core.files import hash_json
from synth.core.rng import randn_each, sample_rng
from synth.core.space import labels_to_keep
from synth.diffusion.codec import PixelCodec, latents_to_unit, unit_to_latents
from synth.diffusion.denoiser import n_condition_channels, precondition
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.regions import keep_to_latent
from synth.diffusion.samplers import Denoise, Known, plain_walk, sample_ddim
from synth.diffusion.settings import SamplerSettings
from synth.gates.seam import Shown, as_given
from synth.generator import Generator


@dataclass(frozen=True)
class Request:
    """What is to be painted: unit images (B, C, S, S), keep (B, S, S) bool, one seed each.

    Attributes:
        labels: (B, S, S), or None. keep_in: (B, S, S) bool, kept too, or None.
    """

    image: torch.Tensor
    keep: torch.Tensor
    seeds: Sequence[int]
    labels: torch.Tensor | None = None
    keep_in: torch.Tensor | None = None

    @property
    def shown(self) -> torch.Tensor:
        """Every pixel that shows through, (B, S, S) bool."""
        return self.keep if self.keep_in is None else self.keep | self.keep_in


@dataclass(frozen=True)
class Paint:
    """A way of painting: called with a request, it returns painted unit images (B, C, S, S) on the CPU.

    Attributes:
        shown: unit images (B, C, S, S) -> how their kept pixels appear in what is painted; None = like all the rest.
    """

    run: Callable[[Request], torch.Tensor]
    shown: Shown | None = as_given

    def __call__(self, request: Request) -> torch.Tensor:
        """Returns painted unit images (B, C, S, S)."""
        return self.run(request)


def ours(pipeline: InpaintPipeline) -> Paint:
    """Returns the painting of `pipeline` by its own sampler settings."""
    def paint(request: Request) -> torch.Tensor:
        return pipeline.paint(request.image, request.keep, seeds=request.seeds, labels=request.labels,
                              keep_in=request.keep_in).cpu()

    return Paint(paint, generator_shown(pipeline))


def untold(pipeline: InpaintPipeline) -> Denoise:
    """Returns the network's clean estimate where it is told nothing: an unconditional denoiser."""
    def denoise(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        """Returns the clean estimate (B, c, h, w) of latents (B, c, h, w)."""
        told = n_condition_channels(latent_channels=latents.shape[1], n_classes=pipeline.config.n_classes)
        nothing = latents.new_zeros(len(latents), told, *latents.shape[2:])
        return precondition(pipeline.unet, latents, latents.new_full((len(latents),), sigma), nothing)

    return denoise


def _pasted(pipeline: InpaintPipeline, request: Request,
            draw: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Returns the source with what is not kept taken from draw(latents, held): a hard paste, no margin, no blend."""
    image, shown = request.image.to(pipeline.device), request.shown.to(pipeline.device)
    latents = draw(unit_to_latents(pipeline.vae, image), keep_to_latent(shown, factor=pipeline.factor))
    return torch.where(shown[:, None], image, latents_to_unit(pipeline.vae, latents)).cpu()


def naive_ddim(pipeline: InpaintPipeline, *, n_steps: int = 50) -> Paint:
    """Returns painting by unconditional DDIM, known latents pasted in at every level and their pixels at the end."""
    @torch.no_grad()
    def paint(request: Request) -> torch.Tensor:
        def draw(source: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
            sigmas = pipeline.levels(n_steps)
            rngs = [sample_rng(s, "paint") for s in request.seeds]
            start = sigmas[-1] * randn_each(source.shape[1:], rngs, source.device)
            known = Known(source, held, [sample_rng(s, "known") for s in request.seeds])
            return sample_ddim(untold(pipeline), start, sigmas, walk=plain_walk(n_steps), rngs=rngs, known=known)

        return _pasted(pipeline, request, draw)

    return Paint(paint)


def vp_to_sigma(alpha: float) -> float:
    """Returns EDM's noise level of a variance-preserving one with cumulative alpha: x / sqrt(alpha) has it."""
    return ((1 - alpha) / alpha) ** 0.5


def predict_noise(denoise: Denoise, latents: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns the noise that `denoise` sees in variance-preserving latents (B, c, h, w) at cumulative alpha.

    x_vp = sqrt(alpha) clean + sqrt(1 - alpha) noise, so x_vp / sqrt(alpha) = clean + sigma noise, which is EDM's x.
    """
    sigma, scaled = vp_to_sigma(alpha), latents / alpha**0.5
    return (scaled - denoise(scaled, sigma)) / sigma


def repaint_scheduler(*, n_steps: int, jump_length: int, jump_repeats: int) -> RePaintScheduler:
    """Returns diffusers' scheduler with the levels of latent diffusion and no clamp, which is for pixels in [-1, 1]."""
    scheduler = RePaintScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(n_steps, jump_length, jump_repeats)
    return scheduler


def run_repaint(scheduler: RePaintScheduler, denoise: Denoise, source: torch.Tensor, held: torch.Tensor,
                rngs: list[torch.Generator]) -> torch.Tensor:
    """Returns clean latents (B, c, h, w) by diffusers' RePaintScheduler, the loop being that of its RePaintPipeline.

    Args:
        source: clean latents (B, c, h, w). held: (B, 1, h, w) bool; the scheduler too says 1 = known.
    """
    latents, mask = randn_each(source.shape[1:], rngs, source.device), held.to(source.dtype)
    last = int(scheduler.timesteps[0]) + 1
    for t in scheduler.timesteps.tolist():
        if t < last:
            noise = predict_noise(denoise, latents, float(scheduler.alphas_cumprod[t]))
            latents = scheduler.step(noise, t, latents, source, mask, generator=rngs).prev_sample
        else:
            latents = scheduler.undo_step(latents, last, generator=rngs)
        last = t
    return latents


def repaint(pipeline: InpaintPipeline, *, n_steps: int, jump_length: int, jump_repeats: int) -> Paint:
    """Returns painting by RePaint (Lugmayr et al. 2022) as diffusers ships it, the network told nothing."""
    @torch.no_grad()
    def paint(request: Request) -> torch.Tensor:
        scheduler = repaint_scheduler(n_steps=n_steps, jump_length=jump_length, jump_repeats=jump_repeats)
        rngs = [sample_rng(s, "repaint") for s in request.seeds]
        return _pasted(pipeline, request, lambda source, held: run_repaint(scheduler, untold(pipeline), source, held,
                                                                           rngs))

    return Paint(paint)


SLOW = ("repaint_250_10_10",)
"""Methods of thousands of evaluations: they get few pairs of their own."""


REDRAWN = {f"default_redrawn_{sigma:g}": sigma for sigma in (0.3, 0.6, 1.0)}
"""Noise levels to which the finished image is redrawn, by method."""

METHODS = ("default", "fast", "ddim50", "repaint_50_5_3", "repaint_250_10_10", "default_codec", *REDRAWN)
"""All compared ways of painting, by name. `default_codec` is the default with the kept pixels sent through its codec:
what is left of its seam is the sampling's, the rest of the default's is one of texture. After it, nothing is kept.
"""


def methods(pipeline: InpaintPipeline) -> dict[str, Paint]:
    """Returns all compared ways of painting with the networks of `pipeline`, by name."""
    found = {
        "default": ours(pipeline), "fast": ours(pipeline.with_sampler("fast")), "ddim50": naive_ddim(pipeline),
        "repaint_50_5_3": repaint(pipeline, n_steps=50, jump_length=5, jump_repeats=3),
        "repaint_250_10_10": repaint(pipeline, n_steps=250, jump_length=10, jump_repeats=10),
    }
    ways = {name: {"texture": "redrawn", "redraw_sigma": sigma} for name, sigma in REDRAWN.items()}
    if pipeline.sampler.texture == "source" and not isinstance(pipeline.vae, PixelCodec):
        ways = {"default_codec": {"texture": "codec"}, **ways}
    for name, changes in ways.items():
        found[name] = ours(pipeline.with_sampler(SamplerSettings(**{**pipeline.sampler.model_dump(), **changes})))
    return found


@contextmanager
def counted(unet: torch.nn.Module) -> Iterator[list[int]]:
    """Returns a context whose list holds, for every call of `unet` in it, the number of images of that call."""
    calls: list[int] = []
    handle = unet.register_forward_pre_hook(lambda _module, inputs: calls.append(len(inputs[0])))
    try:
        yield calls
    finally:
        handle.remove()


class MethodGenerator(Generator):
    """One way of painting as a generator, so that `synth.draw` draws with it."""

    def __init__(self, pipeline: InpaintPipeline, name: str, paint: Paint) -> None:
        self.pipeline, self.name, self.method = pipeline, name, paint

    @property
    def size(self) -> int:
        """Side of the images it draws, px."""
        return self.pipeline.size

    @property
    def channels(self) -> int:
        """Channels of the images it draws."""
        return self.pipeline.channels

    @property
    def intensity_range(self) -> tuple[float, float]:
        """Pixel values that are -1 and 1 in unit space."""
        return self.pipeline.intensity_range

    def sample(self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int],
               keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns painted unit images (B, C, S, S) around the foreground of labels `mask` (B, S, S)."""
        return self.method(Request(image, labels_to_keep(mask), seeds, mask, keep_in))

    def transformed(self, image: torch.Tensor) -> torch.Tensor:
        """Returns unit `image` (B, C, S, S) as its kept pixels appear in what this method paints."""
        return image if self.method.shown is None else self.method.shown(image)

    def sampler_settings(self) -> dict[str, float | int | str]:
        """Returns the method's name with the settings of the pipeline it starts from."""
        redrawn = {"texture": "redrawn"} if self.method.shown is None else {}
        return {"method": self.name, **self.pipeline.sampler_settings(), **redrawn}

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits over the pipeline and the method's name."""
        return hash_json([self.pipeline.content_hash(), self.name])
