"""InpaintPipeline: keeps the annotated foreground at every noise level and paints a new surrounding (AugPaint)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler, UNet2DModel

from synth.core.checks import UserError
from synth.core.files import hash_json
from synth.core.rng import randn_each, sample_rng
from synth.diffusion.codec import (
    Codec,
    PixelCodec,
    latent_factor,
    latents_to_unit,
    unit_to_latents,
)
from synth.diffusion.denoiser import Told, labels_to_coverage
from synth.diffusion.network import Network, precision_on
from synth.diffusion.redraw import N_REDRAW, redraw
from synth.diffusion.regions import blend_alpha, draw_margins, grow_cells, keep_to_latent
from synth.diffusion.samplers import SAMPLERS, Denoise, Known, Walk, n_evaluations, resampling_walk
from synth.diffusion.settings import PRESETS, SamplerSettings, Scale, needs_labels
from synth.diffusion.tiles import Canvas, check_canvas, counted, pad_to_multiple, paint_apart, tiled
from synth.generator import Generator, check_labels, painted_around
from synth.pipelines import DrawnOutput, draw_seeds, own_config, unit_to_output, weights_hash


class InpaintPipeline(DiffusionPipeline, Generator):
    """Diffusion inpainting that keeps the annotated foreground (AugPaint, arXiv 2506.23038), by one denoiser that is
    told what it must match: it also repaints objects in place and draws from label maps (`mode`).

    Args:
        vae: codec whose config carries shift_factor and scaling_factor of its training latents.
        unet: denoiser, see `precondition`. scheduler: gives the noise levels; any with `sigmas` in EDM's coordinates
            may be swapped in.
        n_classes: of the labels it may be told. tells_labels: whether it learnt them.
        sampler ... mode: defaults of a call, see `SamplerSettings`; `with_sampler` changes them.
        precision, compile: see there; these two are not saved.
        unit_low, unit_high: pixel values that are -1 and 1 in unit space. scale: see `InpaintSettings`.
    """

    model_cpu_offload_seq = "unet->vae"
    any_size = True
    """It paints images of any height and width from `size` on."""

    def __init__(  # noqa: PLR0913
        self, vae: Codec, unet: UNet2DModel, scheduler: EDMEulerScheduler, n_classes: int = 2,
        tells_labels: bool = True, sampler: str = "dpmpp_2m", n_steps: int = 20, eta: float = 0.0, jump_length: int = 5,  # noqa: FBT001, FBT002
        jump_repeats: int = 1, margin_cells: list[int] = (1, 3), guidance: float = 1.0,
        mode: str = "surroundings", texture: str = "source", unit_low: float = 0.0, unit_high: float = 255.0,
        scale: str = "fit", tile_batch: int = 16, redraw_sigma: float = 0.3,
        precision: str = "auto", compile: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.register_to_config(
            n_classes=n_classes, tells_labels=tells_labels, sampler=sampler, n_steps=n_steps, eta=eta,
            jump_length=jump_length, jump_repeats=jump_repeats, margin_cells=list(margin_cells), guidance=guidance,
            mode=mode, texture=texture, unit_low=unit_low, unit_high=unit_high, scale=scale, tile_batch=tile_batch,
            redraw_sigma=redraw_sigma)
        self.machine: dict[str, str | bool] = {"precision": precision, "compile": compile}

    @property
    def factor(self) -> int:
        """Pixels per latent cell side."""
        return latent_factor(self.vae)

    @property
    def size(self) -> int:
        """Side of the images that its network sees, px; larger ones are painted tile by tile."""
        return int(self.unet.config.sample_size) * self.factor

    @property
    def scale(self) -> Scale:
        """Whether it was fitted on images resized to `size`, "fit", or on crops at their own resolution, "native"."""
        return self.config.scale

    @property
    def channels(self) -> int:
        """Channels of the images it draws."""
        return int(self.vae.config.in_channels)

    @property
    def intensity_range(self) -> tuple[float, float]:
        """Pixel values that are -1 and 1 in unit space."""
        return float(self.config.unit_low), float(self.config.unit_high)

    @property
    def sampler(self) -> SamplerSettings:
        """How it paints unless a call says otherwise."""
        saved = {name: self.config[name] for name in SamplerSettings.model_fields if name not in self.machine}
        return SamplerSettings(**saved, **self.machine)

    def with_sampler(self, settings: SamplerSettings | str) -> InpaintPipeline:
        """Returns this pipeline, same networks, with other sampler settings, or with a preset's on top of its own.

        Raises:
            UserError: for an unknown preset, or what needs labels that the denoiser never learnt.
        """
        if isinstance(settings, str):
            if settings not in PRESETS:
                raise UserError(f"preset={settings}", rule="no such preset", repair=f"take one of {', '.join(PRESETS)}")
            settings = SamplerSettings(**{**self.sampler.model_dump(), **PRESETS[settings]})
        if (words := needs_labels(settings)) and not self.config.tells_labels:
            raise UserError(words, rule="this generator was fitted without labels, so it cannot be "
                            "told where an object shall be", repair="fit it with denoiser.labels=true")
        own = {k: v for k, v in self.config.items() if not k.startswith("_")
               and k not in (*self.components, *SamplerSettings.model_fields)}
        made = InpaintPipeline(**self.components, **own, **settings.model_dump())
        made.taught = self.taught
        return made

    @property
    def precision(self) -> str:
        """What the network computes in on the device where it is: "no" (float32), "bf16" or "fp16"."""
        return precision_on(self.machine["precision"], self.device)

    def sampler_settings(self) -> dict[str, float | int | str | list[int]]:
        """Returns every setting that `sample` uses: the saved ones, and what of the machine's changes its numbers."""
        found = {"precision": self.precision, "compile": self.machine["compile"]}
        return {**self._saved(), **{k: v for k, v in found.items() if v not in ("no", False)}}

    def _saved(self) -> dict[str, float | int | str | list[int]]:
        return {"scheduler": type(self.scheduler).__name__, "ring_px": self.ring_px,
                **self.sampler.model_dump(mode="json", exclude=set(self.machine))}

    def _network(self) -> UNet2DModel | Network:
        """Returns what the samplers ask: the denoiser itself, unless precision or compilation stand before it."""
        precision, compiled = self.precision, self.machine["compile"]
        plain = precision == "no" and not compiled
        return self.unet if plain else Network(self.unet, precision=precision, compiled=compiled)

    @property
    def ring_px(self) -> int:
        """How far around the foreground mode "object" paints, px: one latent cell."""
        return self.factor

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits over weights and configuration of all parts, and the saved sampler settings."""
        parts: dict[str, object] = {"sampler": self._saved(), "range": self.intensity_range,
                                    "told": [self.config.n_classes, self.config.tells_labels],
                                    "scale": self.scale}
        for name, part in (("vae", self.vae), ("unet", self.unet), ("scheduler", self.scheduler)):
            parts[f"{name}_config"] = own_config(part)
        return hash_json({**parts, "vae": weights_hash(self.vae), "unet": weights_hash(self.unet)})

    def levels(self, n_steps: int, *, strength: float = 1.0) -> torch.Tensor:
        """Returns the noise levels (n + 1,) from 0 (clean) to the noisiest that `strength` leaves."""
        self.scheduler.set_timesteps(n_steps)
        sigmas = self.scheduler.sigmas.float().cpu().flip(0)
        return sigmas[:max(1, round(strength * n_steps)) + 1]

    def walk(self, n_steps: int) -> Walk:
        """Returns the moves over `n_steps` levels, with the resampling that is set."""
        return resampling_walk(n_steps, jump_length=self.config.jump_length, jump_repeats=self.config.jump_repeats)

    def evaluations(self, n_steps: int | None = None) -> int:
        """Returns how often the network is called for one batch, or, of a larger image, for each batch of tiles."""
        n = n_evaluations(self.walk(n_steps or self.config.n_steps), sampler=self.config.sampler)
        n += N_REDRAW * (self.config.texture == "redrawn")
        return n * (1 if self.config.guidance == 1 else 2)

    def _coverage(self, labels: torch.Tensor | None, shape: torch.Size) -> torch.Tensor:
        n, factor = self.config.n_classes, self.factor
        if labels is None or not self.config.tells_labels:
            return torch.zeros(shape[0], n, shape[2] // factor, shape[3] // factor, device=self.device)
        return labels_to_coverage(labels.to(self.device), n, factor=factor)

    @torch.no_grad()
    def paint(  # noqa: PLR0913 - what is kept, what is told, and how
        self, image: torch.Tensor, keep: torch.Tensor, *, seeds: Sequence[int], labels: torch.Tensor | None = None,
        keep_in: torch.Tensor | None = None, n_steps: int | None = None, strength: float = 1.0,
        callback: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Returns painted unit images (B, C, H, W); `image` (B, C, H, W) shows through where keep (B, H, W) is True.

        H and W may be any from `size` on: larger images are painted one by one, tile by tile (`synth.diffusion.tiles`),
        and of each only the surroundings of what is not kept.

        Args:
            labels: (B, H, W), told to the denoiser if it learnt labels; None = it is told none.
            keep_in: (B, H, W) bool, kept too, but without a margin (a frame, the air around a body).
            strength: in (0, 1]; below 1 painting starts from the source noised to that share of the levels.
            callback: called with (evaluations done, evaluations in all).

        Raises:
            UserError: if sizes or seeds do not fit, for labels it never learnt, or `strength` is out of range.
        """
        check_canvas(self, image, keep, seeds=seeds)
        if labels is not None and self.config.tells_labels:
            check_labels(labels, self.config.n_classes)
        if not 0 < strength <= 1:
            raise UserError(f"strength={strength}", rule="it lies in (0, 1]", repair="write strength=1.0")
        image, keep = image.to(self.device), keep.to(self.device)
        keep_in = torch.zeros_like(keep) if keep_in is None else keep_in.to(self.device)
        canvas = Canvas(image, self.transformed(image).to(self.device), keep, keep_in, labels)
        one_tile = tuple(image.shape[-2:]) == (self.size, self.size)
        sigmas = self.levels(n_steps or self.config.n_steps, strength=strength)
        done, total = [0], self.evaluations(len(sigmas) - 1) * (1 if one_tile else len(image))

        def tick() -> None:
            done[0] += 1 if self.config.guidance == 1 else 2
            if callback is not None:
                callback(done[0], total)

        run = partial(self._paint, sigmas=sigmas, strength=strength, tick=tick)
        if one_tile:
            return run(canvas, seeds)
        return paint_apart(canvas, seeds, run, tile_px=self.size, factor=self.factor,
                           redrawn=self.config.texture == "redrawn")

    def _paint(self, canvas: Canvas, seeds: Sequence[int], *, sigmas: torch.Tensor, strength: float,
               tick: Callable[[], None]) -> torch.Tensor:
        source, keep = unit_to_latents(self.vae, canvas.image), canvas.keep | canvas.keep_in
        held = keep_to_latent(canvas.keep, factor=self.factor)
        held = grow_cells(held, draw_margins(seeds, tuple(self.config.margin_cells)))
        held = held | keep_to_latent(canvas.keep_in, factor=self.factor)
        if self.config.mode == "object":  # what is repainted must not be held by its neighbours' margin
            held = held & ~keep_to_latent(~keep, factor=self.factor)
        rngs = [sample_rng(s, "paint") for s in seeds]
        latents = sigmas[-1] * randn_each(source.shape[1:], rngs, self.device)
        if strength < 1:  # else pure noise: nothing of the old surrounding may leak in
            latents = latents + source
        latents = SAMPLERS[self.config.sampler](
            counted(self._denoise(canvas, source, held), tick), latents, sigmas, walk=self.walk(len(sigmas) - 1),
            rngs=rngs, eta=self.config.eta, known=Known(source, held, [sample_rng(s, "known") for s in seeds]))
        if self.config.texture == "redrawn":
            held, keep = keep_to_latent(canvas.keep_in, factor=self.factor), canvas.keep_in
            latents = redraw(counted(self._denoise(canvas, source, held), tick), latents, seeds=seeds, source=source,
                             sigma=self.config.redraw_sigma, held=held)
        alpha = blend_alpha(keep, width_px=self.factor)
        mixed = alpha * canvas.shown + (1 - alpha) * latents_to_unit(self.vae, latents)
        return torch.where(alpha == 1, canvas.shown, mixed)

    def _denoise(self, canvas: Canvas, source: torch.Tensor, held: torch.Tensor) -> Denoise:
        told = Told.of(source, held, self._coverage(canvas.labels, canvas.image.shape))
        return tiled(self._network(), told, held, guidance=self.config.guidance, tile_batch=self.config.tile_batch)

    def around(self, mask: torch.Tensor) -> torch.Tensor:
        """Returns which pixels of labels `mask` (B, H, W) are painted around, (B, H, W) bool: `paint`'s `keep`."""
        return painted_around(mask, self.sampler_settings())

    def sample(self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int],
               keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns a new image for labels `mask` (B, H, W) and unit `image` (B, C, H, W): what `mode` says is painted.

        Args:
            keep_in: (B, H, W) bool, further pixels that show through.
        """
        check_canvas(self, image, mask, seeds=seeds)
        return self.paint(image, self.around(mask), seeds=seeds, labels=mask, keep_in=keep_in).cpu()

    def transformed(self, image: torch.Tensor) -> torch.Tensor:
        """Returns unit `image` (B, C, H, W) as its kept pixels will be: through the codec, or as it is (`texture`)."""
        # Redrawn, only frames are still kept: they are the source's.
        lossless = isinstance(self.vae, PixelCodec) or self.config.texture != "codec"
        return image if lossless else self.roundtrip(image)

    @torch.no_grad()
    def roundtrip(self, image: torch.Tensor) -> torch.Tensor:
        """Returns unit `image` (B, C, H, W) decoded from its own latents: the codec's texture without new content."""
        latents = unit_to_latents(self.vae, pad_to_multiple(image.to(self.device), self.factor))
        return latents_to_unit(self.vae, latents)[..., :image.shape[-2], :image.shape[-1]].cpu()

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - the names that users of diffusers know
        self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, num_inference_steps: int | None = None,
        strength: float = 1.0, output_type: str = "pil",
        callback_on_step_end: Callable[[int, int], None] | None = None,
    ) -> DrawnOutput:
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

            unit = self.paint(image, self.around(mask), seeds=draw_seeds(len(image), seeds, generator), labels=mask,
                              n_steps=num_inference_steps, strength=strength, callback=tick).cpu()
        return unit_to_output(unit, output_type)
