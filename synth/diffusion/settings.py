"""Settings of the inpainting engine; every default of it stands here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from synth.core.config import Settings, Word
from synth.core.data import DataSettings
from synth.core.loop import LoopSettings
from synth.diffusion.health import HealthSettings
from synth.features import FeatureName


class AutoencoderSettings(Settings):
    """The KL autoencoder. Down-sampling f = 2^(len(widths) - 1): three widths give f = 4, four f = 8.

    Attributes:
        kind: "kl" = this autoencoder; "pixels" = none, the denoiser works on the pixels themselves (f = 1); "auto" =
            pixels where the median object is under 16 px across, else kl.
        patch: of "pixels": patch x patch pixels become channels of one cell, without loss.
        pretrained: local folder of an AutoencoderKL, AutoencoderTiny or PixelCodec to use in the place of training one.
        widths: multiples of 8, the groups of the norms; None = by `size`, see `widths_of`.
        perceptual_weight, adversarial_weight: of these terms beside the L1; 0 = without. The adversarial weight is a
            share of the gradient of all other terms in the last layer, so it needs no tuning to the image range.
        adversarial_start: share of the run after which the discriminator begins.
        features: of the perceptual term.
    """

    kind: Literal["auto", "kl", "pixels"] = "auto"
    patch: Literal[1, 2, 4, 8] = 2
    pretrained: str | None = None
    widths: tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...] | None = Field(None, min_length=1)
    layers: int = Field(1, ge=1)
    latent_channels: int = Field(4, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(1e-3, gt=0)
    gradient_weight: float = Field(1.0, ge=0)
    perceptual_weight: float = Field(1.0, ge=0)
    adversarial_weight: float = Field(0.2, ge=0)
    adversarial_start: float = Field(0.5, ge=0, lt=1)
    features: FeatureName = "auto"
    kl_weight: float = Field(1e-6, ge=0)
    loop: LoopSettings = LoopSettings(steps=10000)


def widths_of(settings: AutoencoderSettings, size: int) -> tuple[int, ...]:
    """Returns the autoencoder's widths for images of `size` px: as set, else three below 512 px and four from there on.

    So a latent has 64 to 127 cells a side from 256 px on up to 1016 px: what fine structure needs, and what the
    denoiser's attention, whose cost grows with the fourth power of that side, can bear.
    """
    if settings.widths is not None:
        return settings.widths
    return (64, 128, 128) if size < 512 else (64, 128, 256, 256)


class DenoiserSettings(Settings):
    """The one denoiser: painting surroundings, repainting or inserting objects, drawing from labels or from nothing.

    Attributes:
        attention: which resolutions, from fine to coarse, use self-attention.
        n_views: cached latents per training image: the image, then random zooms (and flips, if `flip`) of it.
        sigma_min, sigma_max: range of noise levels of sampling. p_mean, p_std: of log sigma in training.
        labels: whether it is told the label maps of the labelled images. If not, one generator serves any choice of
            labelled images among the training images.
        label_dropout: share of labelled images shown without their labels. labelled_share: of every batch.
        keep_dropout: share of images of which nothing is told. repaint_share: of the others, the share of which all but
            a region is told, in the place of a region.
        foreground_weight: how much more the loss counts on labelled foreground (0 = alike).
    """

    widths: tuple[PositiveInt, ...] = Field((128, 256, 384), min_length=1)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    sigma_min: float = Field(0.01, gt=0)
    sigma_max: float = Field(40.0, gt=0)
    p_mean: float = 0.3
    p_std: float = Field(1.4, gt=0)
    n_views: int = Field(4, ge=1)
    flip: bool = True
    zoom: float = Field(1.2, ge=1)
    labels: bool = True
    label_dropout: float = Field(0.2, ge=0, le=1)
    labelled_share: float = Field(0.25, ge=0, le=1)
    keep_dropout: float = Field(0.2, ge=0, le=1)
    repaint_share: float = Field(0.2, ge=0, le=1)
    foreground_weight: float = Field(0.0, ge=0)
    loop: LoopSettings = LoopSettings(steps=20000)


Precision = Annotated[Literal["auto", "no", "bf16", "fp16"], Word]
SamplerName = Literal["ddim", "euler", "heun", "dpmpp_2m"]
Mode = Literal["surroundings", "object", "layout"]
Scale = Literal["fit", "native"]


class SamplerSettings(Settings):
    """How a pair is painted.

    All are saved with the generator but `precision` and `compile`, which are the machine's: say those where you draw. A
    pair's provenance has them where they are not float32 and uncompiled, so no set is drawn half in one, half in
    another; the generator's content hash does not.

    Attributes:
        sampler: see `synth.diffusion.samplers`. n_steps: noise levels. eta: 0 = deterministic, 1 = ancestral (churn).
        jump_length, jump_repeats: RePaint's resampling (repeats 1 = none).
        margin_cells: fewest and most latent cells by which the keep mask is grown; drawn anew for each pair, so that
            the transition is at no fixed distance from the label. A cell is f px wide.
        guidance: classifier-free guidance by the labels; 1 = none, else two evaluations a step.
        texture: of the kept pixels. "source" = bit for bit as they are in the transformed source; "codec" = the source
            is first sent through the codec, so that kept and painted pixels have one texture: a network then finds the
            transition less easily, but what it learns from is no longer the scanner's pixels. "redrawn" = the finished
            image, object and all, is noised to `redraw_sigma` and denoised once more as one (SDEdit, Meng et al. 2022):
            what is left of a transition goes, and the object is only like the source's; no pixel of it is kept.
        redraw_sigma: of texture "redrawn", in standard deviations of the latents. The more, the less of a seam, and the
            freer the object's outline and inside: measured, pairs were worth less the higher it was. It takes four
            evaluations more.
        tile_batch: of an image larger than the generator, tiles that go through the network together.
        precision: of the network; noise levels, known region and the sampler's state are float32 in any. "auto" = bf16
            on GPUs that have it, else "no" (float32). Against float32, untrained networks differ by up to two grey
            levels of 256 in bf16, by a quarter of one in fp16; so may a pair alone and in a batch of another size.
        compile: the network, by torch.compile. It changes the last bits, and takes half a minute or more for each size
            of batch (powers of two): for large sets.
        mode: what is painted. surroundings = everything but the foreground (AugPaint); object = the foreground inside
            its own mask, the surroundings kept; layout = everything, from the labels alone.
    """

    sampler: SamplerName = "dpmpp_2m"
    n_steps: int = Field(20, ge=1)
    eta: float = Field(0.0, ge=0, le=1)
    jump_length: int = Field(5, ge=1)
    jump_repeats: int = Field(1, ge=1)
    margin_cells: tuple[int, int] = (1, 3)
    guidance: float = Field(1.0, ge=0)
    mode: Mode = "surroundings"
    texture: Literal["source", "codec", "redrawn"] = "source"
    redraw_sigma: float = Field(0.3, gt=0)
    tile_batch: int = Field(16, ge=1)
    precision: Precision = "auto"
    compile: bool = False

    @field_validator("margin_cells")
    @classmethod
    def _is_range(cls, cells: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= cells[0] <= cells[1]:
            raise ValueError("it is the fewest and the most cells, such as [1, 3]")
        return cells


def needs_labels(settings: SamplerSettings) -> str:
    """Returns which of the settings mean nothing to a denoiser that is told no labels, "" if none."""
    words = {f"mode={settings.mode}": settings.mode != "surroundings", f"guidance={settings.guidance:g}":
             settings.guidance != 1}
    return " ".join(word for word, there in words.items() if there)


PRESETS: dict[str, dict[str, str | int | float]] = {
    "fast": {"sampler": "dpmpp_2m", "n_steps": 8, "eta": 0.0, "jump_repeats": 1, "guidance": 1.0},
}
"""Named changes of `SamplerSettings`, on top of what a generator was saved with."""


class InpaintSettings(Settings):
    """Everything `synth fit configs/inpaint.yaml` reads.

    Attributes:
        size: side of the images that the networks see, px.
        scale: "fit" = every image is resized to `size`; "native" = the networks see random crops of `size` px
            (`denoiser.n_views` of each image), and images are painted at their own resolution, tile by tile.
    """

    kind: Literal["inpaint"] = "inpaint"
    size: int = Field(128, ge=16)
    scale: Scale = "fit"
    data: DataSettings = DataSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    health: HealthSettings = HealthSettings()
    denoiser: DenoiserSettings = DenoiserSettings()
    sampler: SamplerSettings = SamplerSettings()
    out: str | None = None
