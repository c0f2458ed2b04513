"""Networks behind one call: unit images (B, C, H, W) in, logits (B, K, H, W) out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from segtrain.settings import ModelSettings
from synth.core.checks import UserError
from synth.core.rng import derive_seed


def _block(n_in: int, n_out: int) -> nn.Sequential:
    # Group norm: the same in training and evaluation, for any mix of labelled and unlabelled images, on any rank.
    groups = max(g for g in (1, 2, 4, 8) if n_out % g == 0)
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=1, bias=False), nn.GroupNorm(groups, n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class TinyUnet(nn.Module):
    """A U-Net for CPUs that works at half resolution: 2x2 pixels become channels at its door and pixels at its exit.

    At 64 px that costs a quarter of a full-resolution U-Net of the same widths.
    """

    def __init__(self, in_channels: int, n_classes: int, *, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = 2 ** len(channels)
        finer = [4 * in_channels, *channels[:-1]]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(finer, channels, strict=True))
        steps = zip(channels[-2::-1], channels[:0:-1], strict=True)
        self.up = nn.ModuleList(_block(fine + coarse, fine) for fine, coarse in steps)
        self.head = nn.Conv2d(channels[0], 4 * n_classes, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K, H, W) of unit images (B, C, H, W); H and W are multiples of `stride`."""
        x = F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last)
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        return F.pixel_shuffle(self.head(x), 2).contiguous()


def _unet(in_channels: int, n_classes: int, settings: ModelSettings) -> nn.Module:
    import segmentation_models_pytorch as smp  # slow to import, and the tiny network does without

    if len(settings.channels) != 5:
        raise UserError(f"model.channels {list(settings.channels)}", rule="the unet has five levels",
                        repair="give five widths from fine to coarse, e.g. [16, 32, 64, 128, 256]")
    try:
        net = smp.Unet(settings.encoder, encoder_weights=None, in_channels=in_channels, classes=n_classes,
                       decoder_channels=settings.channels[::-1])
    except KeyError:
        raise UserError(f"model.encoder {settings.encoder!r}", rule="segmentation_models_pytorch knows no such encoder",
                        repair="take one of its list, e.g. resnet18") from None
    net.stride = 32
    return net


def build_model(name: str, in_channels: int, n_classes: int, settings: ModelSettings, *, seed: int = 0) -> nn.Module:
    """Returns the network `name` with fresh weights that depend on `seed` alone; its `stride` divides every size.

    Raises:
        UserError: if the name, the encoder or the number of widths is unknown to us.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        if name == "unet":
            return _unet(in_channels, n_classes, settings)
        if name != "tiny":
            raise UserError(f"model.name {name!r}", rule="no such network", repair="take unet or tiny")
        if len(settings.channels) < 2:
            raise UserError(f"model.channels {list(settings.channels)}", rule="a U-Net has at least two levels",
                            repair="give two or more widths")
        return TinyUnet(in_channels, n_classes, channels=settings.channels)


def check_size(net: nn.Module, size: int) -> None:
    """Returns nothing; raises if the network cannot halve `size` as often as it has to.

    Raises:
        UserError: naming the two nearest sizes that it can.
    """
    if size % net.stride:
        low = size // net.stride * net.stride
        raise UserError(f"size {size}", rule=f"this network needs a multiple of {net.stride} px",
                        repair=f"take {low or net.stride} or {low + net.stride}")
