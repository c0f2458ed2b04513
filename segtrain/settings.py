"""Settings of one segmenter's training. Every default lives here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synth.core.config import Settings
from synth.core.loop import LoopSettings


class DataSettings(Settings):
    """Where the shell finds the data; the Python API takes sets instead.

    Attributes:
        labelled, unlabelled, synthetic: folders; the last two may be empty.
        mask_map: how mask values become class indices, e.g. "0:0,255:1". channels: 1, 3 or null (as found).
        held_out: groups of validation and test cases; training refuses everything that stems from them.
    """

    labelled: str = ""
    unlabelled: str = ""
    synthetic: str = ""
    mask_map: str | None = None
    channels: Literal[1, 3] | None = None
    held_out: tuple[str, ...] = ()


class GeometrySettings(Settings):
    """What moves pixels, image and label mask alike.

    Attributes:
        flip_horizontal, flip_vertical: allow mirrored anatomy along that axis, half of the time.
        p: share of samples that are also rotated, zoomed and shifted.
        rotate_deg: largest angle. zoom: largest factor - 1, either way. shift: largest move, share of the side.
        elastic_px: standard deviation of a smooth random displacement, px (0 = off). elastic_cells: its coarseness.
    """

    flip_horizontal: bool = True
    flip_vertical: bool = False
    p: float = Field(0.7, ge=0, le=1)
    rotate_deg: float = Field(20.0, ge=0, le=180)
    zoom: float = Field(0.25, ge=0, lt=4)
    shift: float = Field(0.1, ge=0, le=0.5)
    elastic_px: float = Field(0.0, ge=0)
    elastic_cells: int = Field(4, ge=2, le=32)


class IntensitySettings(Settings):
    """What changes grey values or colours only. Each kind hits a share `p_*` of the samples.

    Attributes:
        brightness, contrast, saturation, gamma: largest relative change. hue: largest turn, share of the circle.
        blur_px: largest Gaussian sigma, px. noise: largest sigma, share of the intensity range.
        low_res: smallest share of the resolution that is kept.
    """

    p_colour: float = Field(0.5, ge=0, le=1)
    brightness: float = Field(0.25, ge=0, lt=1)
    contrast: float = Field(0.25, ge=0, lt=1)
    saturation: float = Field(0.25, ge=0, le=1)
    hue: float = Field(0.03, ge=0, le=0.5)
    gamma: float = Field(0.3, ge=0)
    p_blur: float = Field(0.15, ge=0, le=1)
    blur_px: float = Field(1.0, ge=0)
    p_noise: float = Field(0.15, ge=0, le=1)
    noise: float = Field(0.05, ge=0)
    p_low_res: float = Field(0.15, ge=0, le=1)
    low_res: float = Field(0.5, gt=0, le=1)


class AugmentSettings(Settings):
    """What every labelled and synthetic pair goes through; the geometry is also the unlabelled images' weak view."""

    geometry: GeometrySettings = GeometrySettings()
    intensity: IntensitySettings = IntensitySettings()


class ModelSettings(Settings):
    """Which network.

    Attributes:
        name: "unet" (segmentation_models_pytorch); "tiny" (a small U-Net for CPUs and small images) or "lite" (the same
            decoder on EfficientNet-Lite0's first stages).
        encoder: of "unet"; the other two have their own.
        weights: of the encoder at the start: "" = untrained; "imagenet" = those that the package behind
            pairsmith[features] ships, for "lite" alone. Nothing is ever downloaded.
        channels: widths from fine to coarse; two or more for "tiny", two to four for "lite", five (the decoder's) for
            "unet".
    """

    name: Literal["unet", "tiny", "lite"] = "unet"
    encoder: str = "resnet18"
    weights: Literal["", "imagenet"] = ""
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)


class OptimSettings(Settings):
    """How the weights move; the learning rate falls by the poly rule, (1 - progress)^0.9.

    Attributes:
        encoder_lr: learning rate of an encoder that starts from given weights, share of `lr`; one that does not has
            `lr`.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    encoder_lr: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(1e-2, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)


class SegmentSettings(Settings):
    """One segmenter: data, network, augmentation, budget.

    Attributes:
        method: name of a file in configs/methods, or a path.
        size: side of the square images the network sees, px.
        batch_size: labelled + synthetic images per step. unlabelled_batch_size: beside them.
        synthetic_share: of the labelled + synthetic images, where synthetic pairs are given.
        w_syn: weight of the synthetic pairs' loss beside the labelled pairs' 1.
        second: the second network of methods that want two of different architecture; null = a partner of `model`.
        flip_averaging: predictions are the mean over the flips that the geometry allows.
    """

    data: DataSettings = DataSettings()
    method: str = "supervised"
    size: int = Field(256, ge=16)
    batch_size: int = Field(16, ge=1)
    unlabelled_batch_size: int = Field(16, ge=1)
    synthetic_share: float = Field(0.5, gt=0, le=1)
    w_syn: float = Field(1.0, gt=0)
    model: ModelSettings = ModelSettings()
    second: ModelSettings | None = None
    optim: OptimSettings = OptimSettings()
    augment: AugmentSettings = AugmentSettings()
    flip_averaging: bool = False
    loop: LoopSettings = LoopSettings()
