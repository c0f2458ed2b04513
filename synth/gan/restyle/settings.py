"""Settings of appearance translation; every default of theirs stands here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synth.core.config import Settings
from synth.core.data import DataSettings
from synth.core.loop import LoopSettings


class StylesSettings(Settings):
    """What counts as one style.

    Attributes:
        by: "domains" takes domains.csv, "clusters" groups the images by their appearance, "auto" clusters where no
            image has a domain. Domains that say what is shown (a diagnosis) are no styles: then take clusters.
        n_clusters: how many of these. least: fewest training images of a style.
    """

    by: Literal["auto", "domains", "clusters"] = "auto"
    n_clusters: int = Field(3, ge=2)
    least: int = Field(4, ge=1)


class RestylerSettings(Settings):
    """The network that changes the appearance.

    Attributes:
        widths: channels from fine to coarse. n_blocks: residual blocks at the coarsest level.
        n_code: numbers of a style's code. jitter: deviation of the noise on it, as a share of the codes' own spread at
            the start: images of one style differ too. ema_decay: of its average, which is what is saved.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    n_blocks: int = Field(4, ge=0)
    n_code: int = Field(16, ge=1)
    jitter: float = Field(0.2, ge=0)
    lr: float = Field(2e-4, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)


class StyleJudgeSettings(Settings):
    """Who judges it.

    Attributes:
        augment: how far what it sees is moved and cut (DiffAugment without colour), 0 = not at all.
    """

    width: int = Field(64, ge=1)
    lr: float = Field(4e-4, gt=0)
    augment: float = Field(0.5, ge=0, le=1)


class CoachSettings(Settings):
    """The small segmenter that says whether labels still hold; it learns from real labelled pairs alone.

    Attributes:
        augment: how far these are altered in colour and moved (DiffAugment). Much of it, and the coach would find an
            object of any colour, where it shall say what one looks like in each style.
    """

    widths: tuple[int, ...] = (32, 64, 128, 128)
    lr: float = Field(1e-3, gt=0)
    augment: float = Field(0.3, ge=0, le=1)


class ContentSettings(Settings):
    """Weights of what keeps the content, beside the adversarial term.

    Attributes:
        cycle: L1 after the way there and back. own: L1 in the image's own style.
        edges: see `synth.gan.structure.edge_distance`. mask: of the coach's cross entropy, from a fifth of the run on.
    """

    cycle: float = Field(10.0, ge=0)
    own: float = Field(5.0, ge=0)
    edges: float = Field(5.0, ge=0)
    mask: float = Field(3.0, ge=0)


class RestyleHealthSettings(Settings):
    """When a fitted translator is refused.

    Attributes:
        held_aside: labelled pairs that nothing is trained on, to see whether their labels still hold; 0 = none.
        min_moved: share of the way, in appearance, from an image to the style asked for.
        min_mask_kept: the coach's Dice on translated images over that on the same real ones; below it there is a
            warning.
    """

    held_aside: int = Field(2, ge=0)
    min_moved: float = 0.1
    min_mask_kept: float = Field(0.8, ge=0)


class AppearanceSettings(Settings):
    """Everything `synth fit configs/appearance.yaml` reads.

    Attributes:
        size: side of the images, px. batch_size: images of a step, half of them labelled.
    """

    kind: Literal["appearance"] = "appearance"
    size: int = Field(128, ge=32)
    data: DataSettings = DataSettings()
    batch_size: int = Field(16, ge=2)
    styles: StylesSettings = StylesSettings()
    translator: RestylerSettings = RestylerSettings()
    discriminator: StyleJudgeSettings = StyleJudgeSettings()
    coach: CoachSettings = CoachSettings()
    loss: ContentSettings = ContentSettings()
    health: RestyleHealthSettings = RestyleHealthSettings()
    loop: LoopSettings = LoopSettings(steps=20000)
    out: str | None = None


class StyleSettings(Settings):
    """What `sampler.` sets when drawing: the style of all images, or, with none, another one for each."""

    style: str | None = None
