"""Translators from label maps to images: a U-Net, and SPADE. Instance norm alone, so no image depends on its batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

N_EXTRA = 3
"""Channels of what a translator is told beside the classes: signed distance, frame, a field of noise."""


class CodeNorm(nn.Module):
    """Instance norm whose gain and bias come from a noise code (Huang & Belongie 2017, eq. 8).

    A code laid beside the input would be lost: instance norm takes away whatever is constant over an image.
    """

    def __init__(self, channels: int, n_code: int) -> None:
        super().__init__()
        self.affine = nn.Linear(n_code, 2 * channels)

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Returns x (B, C, H, W), normalised and modulated by code (B, n)."""
        gain, bias = self.affine(code)[..., None, None].chunk(2, 1)
        return F.instance_norm(x) * (1 + gain) + bias


def _conv(before: int, after: int) -> nn.Conv2d:
    # Zeros beyond the border, like cells enlarged as they are, tell a network where it is: bars at fixed places.
    return nn.Conv2d(before, after, 3, padding=1, padding_mode="replicate")


class MapNorm(nn.Module):
    """Instance norm whose gain and bias are maps made from what is told (SPADE, Park et al. 2019, eq. 1)."""

    def __init__(self, channels: int, n_told: int, *, hidden: int) -> None:
        super().__init__()
        self.shared = _conv(n_told, hidden)
        self.maps = _conv(hidden, 2 * channels)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Returns x (B, C, H, W), normalised and modulated by told (B, T, H, W)."""
        gain, bias = self.maps(F.relu(self.shared(told))).chunk(2, 1)
        return F.instance_norm(x) * (1 + gain) + bias


class Down(nn.Module):
    """A convolution to half the resolution, modulated by a code."""

    def __init__(self, before: int, after: int, n_code: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 4, stride=2, padding=1), CodeNorm(after, n_code)

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Returns x (B, C, H, W) at half the resolution."""
        return F.leaky_relu(self.norm(self.conv(x), code), 0.2)


class Up(nn.Module):
    """A convolution at twice the resolution, modulated by a code."""

    def __init__(self, before: int, after: int, n_code: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, padding=1), CodeNorm(after, n_code)

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Returns x (B, C, H, W) at twice the resolution."""
        # Enlarged and then convolved: a transposed convolution leaves a checkerboard.
        return F.leaky_relu(self.norm(self.conv(F.interpolate(x, scale_factor=2.0)), code), 0.2)


class UNetTranslator(ModelMixin, ConfigMixin):
    """The U-Net of pix2pix (Isola et al. 2017, 3.2), its noise a code in every norm in the place of dropout.

    Args:
        widths: channels from fine to coarse; each level but the first has half the resolution of the one before.
    """

    @register_to_config
    def __init__(self, n_told: int = 5, channels: int = 3, sample_size: int = 64, n_code: int = 16,
                 widths: tuple[int, ...] = (32, 64, 128, 128, 128)) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_told, widths[0], 3, padding=1)
        self.down = nn.ModuleList([Down(a, b, n_code) for a, b in zip(widths, widths[1:], strict=False)])
        inner = list(reversed(widths))
        self.up = nn.ModuleList([Up(a if i == 0 else 2 * a, b, n_code)
                                 for i, (a, b) in enumerate(zip(inner, inner[1:], strict=False))])
        self.last = nn.Conv2d(2 * widths[0], channels, 3, padding=1)

    def forward(self, told: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Returns unit images (B, C, H, W) for told (B, T, H, W) and noise codes (B, n)."""
        x = self.first(told)
        skips = [x]
        for layer in self.down:
            x = layer(x, code)
            skips.append(x)
        skips.pop()
        for layer in self.up:
            x = torch.cat([layer(x, code), skips.pop()], 1)
        return torch.tanh(self.last(F.leaky_relu(x, 0.2)))


class _SpadeBlock(nn.Module):
    """Two modulated convolutions beside a shortcut (Park et al. 2019, fig. 4)."""

    def __init__(self, before: int, after: int, n_told: int, *, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([MapNorm(before, n_told, hidden=hidden), MapNorm(after, n_told, hidden=hidden)])
        self.convs = nn.ModuleList([_conv(before, after), _conv(after, after)])
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Returns x (B, C, H, W) with other channels, modulated by told (B, T, H, W)."""
        out = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            out = conv(F.leaky_relu(norm(out, told), 0.2))
        return self.shortcut(x) + out


class SpadeTranslator(ModelMixin, ConfigMixin):
    """SPADE's generator (Park et al. 2019): what is told modulates every level, and OASIS's noise is told with it.

    Levels grow smoothly and borders repeat themselves, in the place of enlarged cells and of zeros.

    Args:
        widths: channels from fine to coarse, one level for each. hidden: width of the modulation's own layer.
    """

    @register_to_config
    def __init__(self, n_told: int = 5, channels: int = 3, sample_size: int = 64, n_code: int = 16,
                 widths: tuple[int, ...] = (32, 64, 128, 128, 128), hidden: int = 32) -> None:
        super().__init__()
        inner, told = list(reversed(widths)), n_told + n_code
        self.first = _conv(told, inner[0])
        self.blocks = nn.ModuleList([_SpadeBlock(a, b, told, hidden=hidden)
                                     for a, b in zip([inner[0], *inner], inner, strict=False)])
        self.last = _conv(inner[-1], channels)

    def forward(self, told: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Returns unit images (B, C, H, W) for told (B, T, H, W) and noise codes (B, n)."""
        wide = torch.cat([told, code[..., None, None].expand(-1, -1, *told.shape[-2:])], 1)
        n = len(self.blocks)
        x = self.first(F.avg_pool2d(wide, 2 ** (n - 1)))
        for i, block in enumerate(self.blocks):
            x = x if i == 0 else F.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = block(x, wide if i == n - 1 else F.avg_pool2d(wide, 2 ** (n - 1 - i)))
        return torch.tanh(self.last(F.leaky_relu(x, 0.2)))


Translator = UNetTranslator | SpadeTranslator
