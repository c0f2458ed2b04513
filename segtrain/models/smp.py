"""Networks of segmentation_models_pytorch, taken apart into encoder, decoder and last layer."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from torch import nn

from segtrain.models.segnet import Features, SegNet, Widths
from segtrain.settings import ModelSettings
from synth.core.checks import UserError


class _Decoder(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.inner = decoder

    def forward(self, features: Features) -> torch.Tensor:
        return self.inner(features)


def unet(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    """Returns a U-Net on an encoder of that library, untrained.

    Raises:
        UserError: if there is no such encoder, or the widths are not five.
    """
    if len(settings.channels) != 5:
        raise UserError(f"model.channels {list(settings.channels)}", rule="the unet has five levels",
                        repair="give five widths from fine to coarse, e.g. [16, 32, 64, 128, 256]")
    try:
        net = smp.Unet(settings.encoder, encoder_weights=None, in_channels=in_channels, classes=n_classes,
                       decoder_channels=settings.channels[::-1])
    except KeyError:
        raise UserError(f"model.encoder {settings.encoder!r}", rule="segmentation_models_pytorch knows no such encoder",
                        repair="take one of its list, e.g. resnet18") from None
    return SegNet(net.encoder, _Decoder(net.decoder), net.segmentation_head, stride=32,
                  widths=Widths(settings.channels[0], net.encoder.out_channels[-1]))
