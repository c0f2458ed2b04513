"""DeepLabv3+ of segmentation_models_pytorch, taken apart into encoder, decoder and last layer."""

from __future__ import annotations

import segmentation_models_pytorch as smp

from segtrain.models.segnet import SegNet, Widths
from segtrain.models.smp import Inner, known_encoder
from segtrain.settings import ModelSettings
from synth.core.checks import UserError

RATES = (6, 12, 18)
"""Dilations of the pyramid at 1/16 of the resolution (Chen et al. 2018, section 4); that library's are for 1/8."""


def deeplabv3plus(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    """Returns DeepLabv3+ on an encoder of that library, untrained: features at 1/16 and 1/4 of the resolution.

    Its decoder pools whole images through a batch norm, so in training it needs two images or more.

    Raises:
        UserError: if there is no such encoder, it cannot be dilated, or there is not one width.
    """
    if len(settings.channels) != 1:
        raise UserError(f"model.channels {list(settings.channels)}", rule="deeplabv3plus has one width, its decoder's",
                        repair="give one, e.g. [128]")
    (width,) = settings.channels
    try:
        with known_encoder(settings):
            net = smp.DeepLabV3Plus(settings.encoder, encoder_weights=None, in_channels=in_channels, classes=n_classes,
                                    decoder_channels=width, decoder_atrous_rates=RATES)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"model.encoder {settings.encoder!r}", rule=f"it cannot be dilated ({error})",
                        repair="take another, e.g. resnet18") from None
    return SegNet(net.encoder, Inner(net.decoder), net.segmentation_head, stride=16,
                  widths=Widths(width, net.encoder.out_channels[-1]))
