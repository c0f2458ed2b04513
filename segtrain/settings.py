"""Settings of one segmenter's training. Every default lives here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from segtrain.transforms.random_net import RandomNetSettings
from segtrain.transforms.spectral import SpectrumSettings
from synth.core.config import Settings
from synth.core.loop import LoopSettings

Norm = Literal["response", "instance", "group"]
"""See `ModelSettings.norm`."""


class DataSettings(Settings):
    """Where the shell finds the data; the Python API takes sets instead.

    Attributes:
        labelled, unlabelled, synthetic: folders; the last two may be empty, and the first too where all labels are
            `stored` ones.
        mask_map: how mask values become class indices, e.g. "0:0,255:1". channels: 1, 3 or null (as found).
        held_out: groups of validation and test cases; training refuses everything that stems from them.
        stored: folder of pseudo-labels of the unlabelled images, masks/ID.png and perhaps confidence/ID.png.
        observers: further folders with masks/ID.png of the labelled images, one for each further annotator.
    """

    labelled: str = ""
    unlabelled: str = ""
    synthetic: str = ""
    mask_map: str | None = None
    channels: Literal[1, 3] | None = None
    held_out: tuple[str, ...] = ()
    stored: str = ""
    observers: tuple[str, ...] = ()


class GeometrySettings(Settings):
    """What moves pixels, image and label mask alike.

    Attributes:
        flip_horizontal, flip_vertical: allow mirrored anatomy along that axis, half of the time.
        p: share of samples that are also rotated, zoomed and shifted.
        rotate_deg: largest angle. zoom: largest factor - 1, either way. shift: largest move, share of the side.
        p_rotate, p_zoom, p_shift: shares of their own, each drawn by itself; null = together, a share `p`.
        elastic_px: standard deviation of a smooth random displacement, px (0 = off). elastic_cells: its coarseness.
        p_elastic: share of samples that it hits.
    """

    flip_horizontal: bool = True
    flip_vertical: bool = False
    p: float = Field(0.7, ge=0, le=1)
    rotate_deg: float = Field(20.0, ge=0, le=180)
    zoom: float = Field(0.25, ge=0, lt=4)
    shift: float = Field(0.1, ge=0, le=0.5)
    elastic_px: float = Field(0.0, ge=0)
    elastic_cells: int = Field(4, ge=2, le=32)
    p_rotate: float | None = Field(None, ge=0, le=1)
    p_zoom: float | None = Field(None, ge=0, le=1)
    p_shift: float | None = Field(None, ge=0, le=1)
    p_elastic: float = Field(1.0, ge=0, le=1)

    @property
    def is_still(self) -> bool:
        """Whether nothing can move under these settings."""
        own = (self.p_rotate, self.p_zoom, self.p_shift)
        return not (self.flip_horizontal or self.flip_vertical or (self.elastic_px and self.p_elastic)
                    or any(self.p if p is None else p for p in own))


class IntensitySettings(Settings):
    """What changes grey values or colours only. Each kind hits a share `p_*` of the samples.

    Attributes:
        brightness, contrast, saturation, gamma: largest relative change. hue: largest turn, share of the circle.
        p_brightness, p_contrast, p_gamma: shares of their own, each drawn by itself; null = with the colours.
        p_invert: share whose grey values go through one more gamma curve while they are inverted.
        retain_stats: whether a gamma curve leaves each channel's mean and standard deviation as they were.
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
    p_brightness: float | None = Field(None, ge=0, le=1)
    p_contrast: float | None = Field(None, ge=0, le=1)
    p_gamma: float | None = Field(None, ge=0, le=1)
    p_invert: float = Field(0.0, ge=0, le=1)
    retain_stats: bool = False

    @property
    def is_still(self) -> bool:
        """Whether no grey value can change under these settings."""
        return not any((self.p_colour, self.p_brightness, self.p_contrast, self.p_gamma, self.p_invert, self.p_blur,
                        self.p_noise, self.p_low_res))


class AugmentSettings(Settings):
    """What every labelled and synthetic pair goes through; the geometry is also the unlabelled images' weak view."""

    geometry: GeometrySettings = GeometrySettings()
    intensity: IntensitySettings = IntensitySettings()
    spectrum: SpectrumSettings = SpectrumSettings()
    random_net: RandomNetSettings = RandomNetSettings()

    @property
    def silent(self) -> set[str]:
        """Parts that are switched off and were once not there: a run without them is what it was before them."""
        return {name for name, off in (("spectrum", self.spectrum.is_still), ("random_net", self.random_net.p == 0))
                if off}


class ModelSettings(Settings):
    """Which network.

    Attributes:
        name: "unet" and "deeplabv3plus" (segmentation_models_pytorch); "tiny" (a small U-Net for CPUs, at half
            resolution), "plain" (the same at full resolution, as nnU-Net's: for structures of a few pixels), "lite"
            (the decoder of "tiny" on EfficientNet-Lite0's first stages), "unetpp" (nested decoders on the tiny
            encoder) and "queries" (a mask-query head on the tiny U-Net); "segformer" (transformers, small);
            "prob_tiny" and "prob_lite" (the probabilistic U-Net on "tiny" and "lite": several plausible masks for one
            image); "gms" (a mapping between latents of a frozen autoencoder).
        encoder: of "unet" and "deeplabv3plus"; the others have their own.
        weights: of the encoder at the start: "" = untrained; "imagenet" = those that the package behind
            pairsmith[features] ships, for "lite" and "prob_lite" alone; else the path of a safetensors file with the
            encoder's tensors. Nothing is ever downloaded.
        channels: widths from fine to coarse; two or more for "tiny", "plain", "prob_tiny", "unetpp", "queries" and
            "segformer", two to four for "lite" and "prob_lite", one or more (the mapping's) for "gms", five (the
            decoder's) for "unet", one (the decoder's) for "deeplabv3plus".
        norm: of the convolutions of "tiny", "plain", "lite", "unetpp" and "queries", over each image: "instance" =
            channel by channel, as nnU-Net's, "response" = the same over the root mean square, means left in (Singh &
            Krishnan 2020), "group" = eight groups of channels, as "prob_tiny" and "prob_lite" have.
        deep_supervision: whether labels also teach the decoder's further levels, weights halving with each.
        depth: of "unetpp" with deep supervision, the nested decoder that predicts; 0 = the deepest. It trains all.
        n_queries: of "queries".
        latent, n_samples: of "prob_tiny" and "prob_lite": numbers behind one mask; masks whose mean is the prediction.
        autoencoder: of "gms": folder of a diffusers AutoencoderKL, or of a pipeline with one in its `vae`; in a saved
            segmenter, its configuration as JSON text, for its weights lie beside.
    """

    name: Literal["unet", "tiny", "plain", "lite", "unetpp", "segformer", "deeplabv3plus", "queries", "prob_tiny",
                  "prob_lite", "gms"] = "unet"
    encoder: str = "resnet18"
    weights: str = ""
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    norm: Norm = "instance"
    deep_supervision: bool = False
    depth: int = Field(0, ge=0)
    n_queries: int = Field(16, ge=2)
    latent: int = Field(6, ge=1)
    n_samples: int = Field(8, ge=1)
    autoencoder: str = ""


class OptimSettings(Settings):
    """How the weights move; the learning rate falls by the poly rule, (1 - progress)^0.9.

    Attributes:
        encoder_lr: learning rate of an encoder that starts from given weights, share of `lr`; one that does not has
            `lr`.
        nesterov: of "sgd". clip: largest norm of a network's gradient; null = any.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    encoder_lr: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(1e-2, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    clip: float | None = Field(None, gt=0)


class SegmentSettings(Settings):
    """One segmenter: data, network, augmentation, budget.

    Attributes:
        method: name of a file in configs/methods, or a path.
        size: side that all images are brought to, px; the network sees them whole.
        patch: side of the squares that the network sees of images at their own size, px, in the place of `size`: random
            ones in training, a third of them around foreground, overlapping ones in prediction. null = whole images.
        normalise: what the network sees: "range" = unit images; "fingerprint" = those clipped and standardised by the
            grey values under the labelled training images' foreground; "image" = each standardised by itself, a
            patch as a patch, channel by channel, so that brightness, contrast and cast of a device are gone.
        batch_size: labelled + synthetic images per step. unlabelled_batch_size: beside them.
        synthetic_share: of the labelled + synthetic images, where synthetic pairs are given.
        w_syn: weight of the synthetic pairs' mean loss beside the labelled pairs' 1, in the mean of both.
        second: the second network of methods that want two of different architecture; null = a partner of `model`.
        flip_averaging: predictions are the mean over the flips that the geometry allows.
    """

    data: DataSettings = DataSettings()
    method: str = "supervised"
    size: int = Field(256, ge=16)
    patch: int | None = Field(None, ge=16)
    normalise: Literal["range", "fingerprint", "image"] = "range"
    batch_size: int = Field(16, ge=1)
    unlabelled_batch_size: int = Field(16, ge=1)
    synthetic_share: float = Field(0.25, gt=0, le=1)
    w_syn: float = Field(1.0, gt=0)
    model: ModelSettings = ModelSettings()
    second: ModelSettings | None = None
    optim: OptimSettings = OptimSettings()
    augment: AugmentSettings = AugmentSettings()
    flip_averaging: bool = False
    loop: LoopSettings = LoopSettings()

    @property
    def side(self) -> int:
        """Side of the squares that the network sees, px."""
        return self.patch or self.size

    def identity(self, *, synthetic: bool, unlabelled: bool) -> dict[str, JsonValue]:
        """Returns all that a run on such sets depends on, but for the sets and the method: an arm without synthetic
        pairs is the same run whatever their share would be."""
        unread = ["data", "method", *([] if synthetic else ["synthetic_share", "w_syn"]),
                  *([] if unlabelled else ["unlabelled_batch_size"])]
        return self.model_dump(mode="json", exclude={**dict.fromkeys(unread, True), "augment": self.augment.silent})
