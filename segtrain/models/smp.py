"""Networks of segmentation_models_pytorch, taken apart into encoder, decoder and last layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import segmentation_models_pytorch as smp
import torch
from torch import nn

from segtrain.models.segnet import Features, SegNet, Widths
from segtrain.settings import ModelSettings
from synth.core.checks import UserError


class Inner(nn.Module):
    """A decoder of that library, which takes Features."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.inner = decoder

    def forward(self, features: Features) -> torch.Tensor:
        """Returns what it makes (B, D, h, w) of features (B, c, h, w)."""
        return self.inner(features)


class _UnetDecoder(Inner):
    def __init__(self, decoder: nn.Module, channels: Sequence[int]) -> None:
        super().__init__(decoder)
        self.further = tuple(channels[1:])

    def deep_heads(self, n_classes: int) -> list[nn.Module]:
        """Returns a fresh head for each level but the finest, fine to coarse: logits at that level's resolution."""
        return [nn.Conv2d(width, n_classes, 1) for width in self.further]

    def levels(self, features: Features) -> Features:
        """Returns what each of its blocks makes, (B, D, h, w), fine to coarse, of features (B, c, h, w)."""
        found: Features = []
        hooks = [block.register_forward_hook(lambda _module, _inputs, x: found.append(x))
                 for block in self.inner.blocks]
        self.inner(features)
        for hook in hooks:
            hook.remove()
        return found[::-1]


@contextmanager
def known_encoder(settings: ModelSettings) -> Iterator[None]:
    """Returns a context in which an encoder is built; raises UserError if that library knows none of its name."""
    try:
        yield
    except KeyError:
        raise UserError(f"model.encoder {settings.encoder!r}", rule="segmentation_models_pytorch knows no such encoder",
                        repair="take one of its list, e.g. resnet18") from None


def unet(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    """Returns a U-Net on an encoder of that library, untrained.

    Raises:
        UserError: if there is no such encoder, or the widths are not five.
    """
    if len(settings.channels) != 5:
        raise UserError(f"model.channels {list(settings.channels)}", rule="the unet has five levels",
                        repair="give five widths from fine to coarse, e.g. [16, 32, 64, 128, 256]")
    with known_encoder(settings):
        net = smp.Unet(settings.encoder, encoder_weights=None, in_channels=in_channels, classes=n_classes,
                       decoder_channels=settings.channels[::-1])
    return SegNet(net.encoder, _UnetDecoder(net.decoder, settings.channels), net.segmentation_head, stride=32,
                  widths=Widths(settings.channels[0], net.encoder.out_channels[-1]))
