"""Settings of translation without pairs; every default of theirs stands here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synth.core.config import Settings
from synth.core.data import DataSettings
from synth.core.loop import LoopSettings
from synth.features import FeatureName
from synth.gan.settings import TranslatorSettings
from synth.layouts import LayoutSettings

Translation = Literal["cycle", "contrastive"]


class UnpairedData(DataSettings):
    """Where the images and the masks lie.

    Attributes:
        masks: folder of label masks of other patients or of another data set, or drawn from a shape model: PNG files,
            there or in masks/. `mask_map` is theirs.
    """

    masks: str | None = None


class LabellerSettings(Settings):
    """The network that labels images.

    Attributes:
        widths: channels from fine to coarse, one level for each.
        calibrate: whether what the mask discriminator makes of a first pass scales the channels of a second.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 256)
    calibrate: bool = True
    lr: float = Field(2e-4, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)


class ShapeSettings(Settings):
    """The variational autoencoder of masks, which judges them by its energy.

    Attributes:
        widths: channels from fine to coarse, each level at half the resolution of the one before.
        n_code: numbers that a mask is brought down to. beta: weight of the divergence of their distribution.
        margin: energy above which a mask made of an image needs no more pushing away.
    """

    widths: tuple[int, ...] = (32, 64, 128, 128)
    n_code: int = Field(32, ge=1)
    beta: float = Field(0.01, ge=0)
    margin: float = Field(0.4, gt=0)
    lr: float = Field(1e-3, gt=0)


class ImageJudgeSettings(Settings):
    """The patch discriminator of images; `augment` is the strength of DiffAugment, 0 = none."""

    width: int = Field(64, ge=1)
    lr: float = Field(2e-4, gt=0)
    augment: float = Field(0.5, ge=0, le=1)


class UnpairedLoss(Settings):
    """Weights.

    Attributes:
        image: of the patch discriminator's verdict on drawn images. shape: of the energy of the labels of real images.
        cycle_image: of image -> mask -> image, L1 (cycle). cycle_mask: of mask -> image -> mask, cross entropy.
        contrast: of PatchNCE in the place of image -> mask -> image (contrastive). temperature, n_places: of PatchNCE.
        style: of the style code: found again in what was drawn with it; divergence: of its distribution.
        noise: on the logits of labels before they are made one-hot.
        warmup: share of the run over which the weight of `shape` rises; an untrained judge has nothing to say.
    """

    image: float = Field(1.0, ge=0)
    shape: float = Field(1.0, ge=0)
    cycle_image: float = Field(10.0, ge=0)
    cycle_mask: float = Field(1.0, ge=0)
    contrast: float = Field(1.0, ge=0)
    temperature: float = Field(0.07, gt=0)
    n_places: int = Field(64, ge=2)
    style: float = Field(1.0, ge=0)
    divergence: float = Field(0.01, ge=0)
    noise: float = Field(0.5, ge=0)
    warmup: float = Field(0.1, ge=0, le=1)


class UnpairedHealth(Settings):
    """What a fit looks at before it is saved.

    Attributes:
        swap_margin: how much nearer the labels' statistics must come to the masks' with classes exchanged before the
            labeller counts as inverted, and is refused.
        max_distance: of the labels' statistics (area, border, place of each class) from the masks' before it warns.
        max_alike: mean Dice between labels of different images, beyond that of the masks, before it is refused: then
            every image has the same label.
        max_place: how much better a fixed guess may fit the labels than the masks before it warns of a bias of place.
        max_hidden: how much smoothing the labels may raise the error of the image drawn from them before it warns.
        features: of the perceptual distance.
    """

    swap_margin: float = Field(0.05, ge=0)
    max_distance: float = Field(0.25, ge=0)
    max_alike: float = Field(0.3, ge=0)
    max_place: float = Field(0.1, ge=0)
    max_hidden: float = Field(1.25, ge=1)
    features: FeatureName = "auto"


class UnpairedSettings(Settings):
    """Everything `synth fit configs/unpaired.yaml` reads.

    Attributes:
        size: side of images and masks, px. layout: random edits of the masks; its `flip` holds for the images too.
        still_share: of the masks, those that are shown as they are.
        tau: how fast an image's weight falls with its label's energy: exp(-(E - E0) / (tau E0)) above E0, the mean
            energy of the masks.
    """

    kind: Literal["unpaired"] = "unpaired"
    translation: Translation = "cycle"
    size: int = Field(128, ge=32)
    data: UnpairedData = UnpairedData()
    batch_size: int = Field(8, ge=1)
    layout: LayoutSettings = LayoutSettings(flip="none", scale=(0.9, 1.1), rotate_deg=10.0, shift=0.05, recombine=0.0)
    still_share: float = Field(0.2, ge=0, le=1)
    labeller: LabellerSettings = LabellerSettings()
    translator: TranslatorSettings = TranslatorSettings()
    shape: ShapeSettings = ShapeSettings()
    discriminator: ImageJudgeSettings = ImageJudgeSettings()
    loss: UnpairedLoss = UnpairedLoss()
    health: UnpairedHealth = UnpairedHealth()
    tau: float = Field(1.0, gt=0)
    loop: LoopSettings = LoopSettings(steps=20000)
    out: str | None = None
