"""The network: one for all styles, whose code modulates every norm (StarGAN's task, AdaIN's means)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from synth.gan.networks import CodeNorm, Down, Up


class _CodeBlock(nn.Module):
    """Two modulated convolutions beside a shortcut, at one resolution."""

    def __init__(self, channels: int, n_code: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([CodeNorm(channels, n_code) for _ in range(2)])
        self.convs = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)])

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Returns x (B, C, H, W), changed."""
        out = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            out = conv(F.leaky_relu(norm(out, code), 0.2))
        return x + out


class StyleTranslator(ModelMixin, ConfigMixin):
    """From an image and a style to the same content in that style.

    The way from the finest level to the end is normalised and modulated too: without it, what an image is coloured like
    would pass through beside the style.

    Args:
        widths: channels from fine to coarse; each level but the first has half the resolution of the one before.
        n_blocks: residual blocks at the coarsest. n_code: numbers of a style's code. jitter: share of noise on it.
    """

    @register_to_config
    def __init__(self, channels: int = 3, sample_size: int = 64, n_styles: int = 2, n_code: int = 16,  # noqa: PLR0913
                 widths: tuple[int, ...] = (32, 64, 128), n_blocks: int = 4, jitter: float = 0.2) -> None:
        super().__init__()
        self.styles = nn.Embedding(n_styles, n_code)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList([Down(a, b, n_code) for a, b in zip(widths, widths[1:], strict=False)])
        self.blocks = nn.ModuleList([_CodeBlock(widths[-1], n_code) for _ in range(n_blocks)])
        inner = list(reversed(widths))
        self.up = nn.ModuleList([Up(a if i == 0 else 2 * a, b, n_code)
                                 for i, (a, b) in enumerate(zip(inner, inner[1:], strict=False))])
        self.join, self.norm = nn.Conv2d(2 * widths[0], widths[0], 3, padding=1), CodeNorm(widths[0], n_code)
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, images: torch.Tensor, style: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Returns unit images (B, C, H, W) of `images`, unit, in styles (B,), with noise (B, n) on their codes."""
        code = self.styles(style) + self.config.jitter * noise
        x = self.first(images)
        skips = [x]
        for layer in self.down:
            x = layer(x, code)
            skips.append(x)
        skips.pop()
        for block in self.blocks:
            x = block(x, code)
        for layer in self.up:
            x = torch.cat([layer(x, code), skips.pop()], 1)
        return torch.tanh(self.last(F.leaky_relu(self.norm(self.join(x), code), 0.2)))
