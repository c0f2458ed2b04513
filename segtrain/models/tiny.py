"""U-Nets of plain blocks: at half resolution for CPUs, on EfficientNet-Lite0's encoder, and at full resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from segtrain.models.segnet import Features, SegNet, Widths
from segtrain.settings import Norm
from synth.core.pretrained import LITE0_WIDTHS, lite0_stages, unit_to_lite0

EPSILON = 1e-5
"""Added beneath a norm's root, as much as torch's own norms add."""


class ChannelNorm(nn.Module):
    """A norm over each channel of each image, of which one pixel would keep its sign at most; then scale and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))


class InstanceNorm(ChannelNorm):
    """Each channel of each image to mean 0 and variance 1, then a learnt scale and shift; the same in evaluation.

    torch's own leaves channels-last memory, which the convolutions around it want: a copy to and fro at every layer.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x` (B, C, h, w) normalised, in the memory format that it has."""
        if x.device.type != "cpu":
            return F.instance_norm(x, weight=self.weight, bias=self.bias)
        # One image's instance norm is its batch norm, whose kernel takes either format.
        alone = [F.batch_norm(one, None, None, self.weight, self.bias, training=True) for one in x.split(1)]
        return torch.cat(alone) if len(alone) != 1 else alone[0]


class ResponseNorm(ChannelNorm):
    """Each channel of each image over its root mean square, then a learnt scale and shift; the same in evaluation.

    Filter response normalisation (Singh & Krishnan 2020) without its learnt threshold. Unlike instance norm it leaves
    the mean in: a faint channel of large mean is not blown up to what a strong one is.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x` (B, C, h, w) normalised, in the memory format that it has."""
        # In 32 bits and divided before it is squared again: squares of halves overflow. torch's norm reads x once.
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        mean_square = (norm / math.sqrt(x.shape[2] * x.shape[3])).square()
        scale = self.weight[:, None, None] * (mean_square + EPSILON).rsqrt()
        return torch.addcmul(self.bias[:, None, None], x, scale)


def group_norm(width: int) -> nn.GroupNorm:
    """Returns the norm over the most groups of channels, up to eight, that `width` can be divided into."""
    return nn.GroupNorm(max(g for g in (1, 2, 4, 8) if width % g == 0), width)


_NORMS: dict[Norm, Callable[[int], nn.Module]] = {"response": ResponseNorm, "instance": InstanceNorm,
                                                  "group": group_norm}


def block(n_in: int, n_out: int, norm: Norm = "group") -> nn.Sequential:
    """Returns two 3x3 convolutions from `n_in` to `n_out` channels, each normalised image by image.

    Channel by channel ("response"; "instance", as nnU-Net's) or in up to eight groups of them. Each is the same in
    training and evaluation, for any mix of labelled and unlabelled images, on any rank.
    """
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=1, bias=False), _NORMS[norm](n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def half(images: torch.Tensor) -> torch.Tensor:
    """Returns images (B, C, H, W) as (B, 4C, H/2, W/2), channels last.

    2x2 pixels become channels at the door: at 64 px a quarter of the cost of a full-resolution U-Net.
    """
    return F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last)


class TinyEncoder(nn.Module):
    """A block for each width, each at half the resolution of the one before; the first at half that of the image, or,
    if `full`, at the image's own."""

    def __init__(self, in_channels: int, channels: Sequence[int], *, norm: Norm = "group", full: bool = False
                 ) -> None:
        super().__init__()
        self.full = full
        finer = [in_channels if full else 4 * in_channels, *channels[:-1]]
        self.blocks = nn.ModuleList(block(a, b, norm) for a, b in zip(finer, channels, strict=True))

    def forward(self, images: torch.Tensor) -> Features:
        """Returns features (B, c, h, w), fine to coarse, of unit images (B, C, H, W)."""
        return encode(self.blocks, images.contiguous(memory_format=torch.channels_last) if self.full else half(images))


def encode(blocks: Iterable[nn.Module], x: torch.Tensor) -> Features:
    """Returns what each of `blocks` makes, (B, c, h, w), fine to coarse, of what the first reads, (B, n, H, W)."""
    features = []
    for i, down in enumerate(blocks):
        x = down(F.max_pool2d(x, 2) if i else x)
        features.append(x)
    return features


class _Lite0Encoder(nn.Module):
    """Pixels at half resolution, then EfficientNet-Lite0's stages; given normalisation stays as it was."""

    def __init__(self, in_channels: int, n_levels: int, *, pretrained: bool, frozen_norm: bool) -> None:
        super().__init__()
        self.stages = nn.ModuleList(lite0_stages(pretrained=pretrained)[:n_levels])
        self.frozen_norm = frozen_norm
        self.widths = (4 * in_channels, *LITE0_WIDTHS[:n_levels])

    def train(self, mode: bool = True) -> _Lite0Encoder:  # noqa: FBT001, FBT002 - torch's signature
        super().train(mode)
        if self.frozen_norm:  # statistics of twenty images would be worse than ImageNet's
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train(mode=False)
        return self

    def forward(self, images: torch.Tensor) -> Features:
        """Returns the pixels at half resolution, then features (B, c, h, w), of unit images (B, C, H, W)."""
        x, features = unit_to_lite0(images).contiguous(memory_format=torch.channels_last), [half(images)]
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """From coarse to fine: enlarge, join with the encoder's features of that level, convolve."""

    def __init__(self, skips: Sequence[int], channels: Sequence[int], *, keep_coarse: bool, norm: Norm) -> None:
        super().__init__()
        self.coarse = None if keep_coarse else block(skips[-1], channels[-1], norm)
        steps = zip(skips[-2::-1], channels[:0:-1], channels[-2::-1], strict=True)
        self.blocks = nn.ModuleList(block(skip + above, out, norm) for skip, above, out in steps)
        self.further = tuple(channels[1:-1])

    def deep_heads(self, n_classes: int) -> list[nn.Module]:
        """Returns a fresh head for each level but the finest, fine to coarse: logits at that level's resolution."""
        return [nn.Conv2d(width, n_classes, 1) for width in self.further]

    def levels(self, features: Features) -> Features:
        """Returns what it makes at each level, (B, D, h, w), fine to coarse; the coarsest is above the encoder's."""
        x, found = features[-1] if self.coarse is None else self.coarse(features[-1]), []
        for up, skip in zip(self.blocks, features[-2::-1], strict=True):
            if x.shape[-2:] != skip.shape[-2:]:
                x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = up(torch.cat([x, skip], dim=1))
            found.append(x)
        return found[::-1]

    def forward(self, features: Features) -> torch.Tensor:
        """Returns the finest level (B, D, h, w) of features (B, c, h, w)."""
        return self.levels(features)[0]


class Door(nn.Module):
    """The way out: four channels for each class become 2x2 pixels.

    All four start from the same weights (ICNR, Aitken et al. 2017). Started apart, they can share the classes out among
    them: one of the four pixels finds one class everywhere, another none, which is a local minimum of a Dice that is
    summed over all pixels, and small structures are stuck in it.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * n_classes, 1)
        self._share()

    def reset_parameters(self) -> None:
        """Draws the weights anew from torch's seed, again the same for all four."""
        self.conv.reset_parameters()
        self._share()

    @torch.no_grad()
    def _share(self) -> None:
        for tensor in (self.conv.weight, self.conv.bias):
            tensor.copy_(tensor[::4].repeat_interleave(4, dim=0))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K, 2h, 2w) of (B, D, h, w)."""
        return F.pixel_shuffle(self.conv(hidden), 2).contiguous()


def tiny(in_channels: int, n_classes: int, channels: Sequence[int], *, norm: Norm) -> SegNet:
    """Returns a U-Net of the given widths, fine to coarse, that works at half resolution."""
    net = SegNet(TinyEncoder(in_channels, channels, norm=norm),
                 Decoder(channels, channels, keep_coarse=True, norm=norm),
                 Door(channels[0], n_classes), stride=2 ** len(channels), widths=Widths(channels[0], channels[-1]))
    return net.to(memory_format=torch.channels_last)


def plain(in_channels: int, n_classes: int, channels: Sequence[int], *, norm: Norm) -> SegNet:
    """Returns a U-Net of the given widths, fine to coarse, that works at full resolution, as nnU-Net's does.

    Several times as slow as `tiny` of the same widths; it is for structures of a few pixels.
    """
    net = SegNet(TinyEncoder(in_channels, channels, norm=norm, full=True),
                 Decoder(channels, channels, keep_coarse=True, norm=norm),
                 nn.Conv2d(channels[0], n_classes, 1), stride=2 ** (len(channels) - 1),
                 widths=Widths(channels[0], channels[-1]))
    return net.to(memory_format=torch.channels_last)


def lite(in_channels: int, n_classes: int, channels: Sequence[int], *, norm: Norm, pretrained: bool, given: bool
         ) -> SegNet:
    """Returns EfficientNet-Lite0's stages, one for each of `channels`, under a decoder of those widths.

    `pretrained` = with ImageNet weights; `given` = its normalisation is not to move, for its weights are not random.

    Raises:
        UserError: if `pretrained` and the package with the weights is not installed.
    """
    encoder = _Lite0Encoder(in_channels, len(channels), pretrained=pretrained, frozen_norm=given)
    # The image itself joins at the level of the first stage, with the width of the finest level.
    decoder = Decoder(encoder.widths, (channels[0], *channels), keep_coarse=False, norm=norm)
    net = SegNet(encoder, decoder, Door(channels[0], n_classes), stride=2 ** len(channels),
                 widths=Widths(channels[0], encoder.widths[-1]))
    return net.to(memory_format=torch.channels_last)
