"""Settings of the translators; every default of theirs stands here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synth.core.config import Settings
from synth.core.data import DataSettings
from synth.core.loop import LoopSettings
from synth.features import FeatureName
from synth.layouts import LayoutSettings

Model = Literal["pix2pix", "spade", "oasis"]


class TranslatorSettings(Settings):
    """The network that draws.

    Attributes:
        widths: channels from fine to coarse. hidden: of the modulation's own layer (spade, oasis).
        n_code: numbers of the noise code. ema_decay: of its average, which is what is saved.
    """

    widths: tuple[int, ...] = (64, 128, 256, 256, 256)
    hidden: int = Field(64, ge=1)
    n_code: int = Field(32, ge=1)
    lr: float = Field(2e-4, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)


class DiscriminatorSettings(Settings):
    """Who judges it.

    Attributes:
        width: of the patch discriminator (pix2pix, spade). widths: of OASIS's, from fine to coarse.
        augment: strength of DiffAugment, 0 = none, 1 = the paper's.
    """

    width: int = Field(64, ge=1)
    widths: tuple[int, ...] = (64, 128, 256, 256, 256)
    lr: float = Field(2e-4, gt=0)
    augment: float = Field(0.5, ge=0, le=1)


class LossSettings(Settings):
    """Weights beside the adversarial term.

    Attributes:
        l1: to the real image of the mask (pix2pix, spade).
        response: of the images' answer to their noise (pix2pix, spade), up to response_bound.
        labelmix: of LabelMix's consistency (oasis).
        unlabelled: of images without labels, which the discriminator is to call real (oasis); 0 = none are taken.
    """

    l1: float = Field(10.0, ge=0)
    response: float = Field(2.0, ge=0)
    response_bound: float = Field(0.15, gt=0)
    labelmix: float = Field(10.0, ge=0)
    unlabelled: float = Field(0.0, ge=0)


class CollapseSettings(Settings):
    """When a fitted translator counts as collapsed.

    Attributes:
        held_aside: labelled pairs that are never trained on, to see what the discriminator makes of them; 0 = none.
        min_diversity: perceptual distance of images drawn for one mask, as a share of that between real images.
        max_overfit: how much oftener the discriminator calls training images real than those held aside, from 0 to 2;
            beyond it there is a warning.
        features: of the perceptual distance.
    """

    held_aside: int = Field(2, ge=0)
    min_diversity: float = Field(0.1, ge=0)
    max_overfit: float = Field(1.0, ge=0)
    features: FeatureName = "auto"


class TranslateSettings(Settings):
    """Everything `synth fit configs/translate.yaml` reads.

    Attributes:
        size: side of the images, px; a multiple of 2^(levels - 1).
        layout: random edits of the training pairs, so that few masks become many; what else layouts can do is refused.
        still_share: of the training pairs, those that are shown as they are.
    """

    kind: Literal["translate"] = "translate"
    model: Model = "oasis"
    size: int = Field(128, ge=32)
    data: DataSettings = DataSettings()
    batch_size: int = Field(16, ge=1)
    layout: LayoutSettings = LayoutSettings(recombine=0.0)
    still_share: float = Field(0.2, ge=0, le=1)
    translator: TranslatorSettings = TranslatorSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    loss: LossSettings = LossSettings()
    collapse: CollapseSettings = CollapseSettings()
    loop: LoopSettings = LoopSettings(steps=20000)
    out: str | None = None
