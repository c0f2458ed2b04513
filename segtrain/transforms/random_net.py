"""Another appearance from a small network of random weights: grey values, colours and polarity change, shapes stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field

from synth.core.config import Settings

SLOPE = 0.01
"""Of the leaky ReLU between layers."""
REACH = 2.0
"""Standard deviations to either side of the mean that fill a range: its ends are no matter of a few bright pixels."""
FLAT = 1e-6
"""An image whose grey values spread less than this has no appearance to change."""


class RandomNetSettings(Settings):
    """Images through networks drawn anew for each (GIN, arXiv 2111.12525).

    Attributes:
        p: share of images that it hits. layers: convolutions of 1 x 1 or 3 x 3. width: channels between them.
        least_range: smallest share of the intensity range that the result's grey values fill, two standard deviations
            to either side of their mean; how much, and where in the range, is drawn for each image.
        p_negative: share of the images hit whose dark and bright are exchanged in the end. Not of the paper, whose
            mixture with the image leaves few negatives: for centres that show bright what this one shows dark.
    """

    p: float = Field(0.0, ge=0, le=1)
    layers: int = Field(4, ge=1, le=16)
    width: int = Field(2, ge=1, le=64)
    least_range: float = Field(0.25, gt=0, le=1)
    p_negative: float = Field(0.0, ge=0, le=1)


@dataclass(frozen=True)
class RandomNet:
    """Drawn networks of B images of C channels, on the CPU.

    Attributes:
        weights, shifts: of each layer, (B, out, in, 3, 3) and (B, out); a 1 x 1 kernel is 0 but in its middle.
        share: of the result in the mixture with the image, (B,) in [0, 1]; 0 = the image stays as it is.
        low, high: grey values two standard deviations below and above the mean afterwards, (B,) in [-1, 1]; the other
            way round for a negative.
    """

    weights: tuple[torch.Tensor, ...]
    shifts: tuple[torch.Tensor, ...]
    share: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def draw_random_net(rngs: Sequence[torch.Generator], settings: RandomNetSettings, *, channels: int) -> RandomNet:
    """Returns one network per generator; row i depends on `rngs[i]` alone."""
    widths = [channels, *[settings.width] * (settings.layers - 1), channels]
    drawn = [_draw_one(rng, settings, widths) for rng in rngs]
    layers = list(zip(*(one[0] for one in drawn), strict=True))
    hit, share, size, place, turn = torch.stack([one[1] for one in drawn]).unbind(1)
    filled = 2 * (settings.least_range + (1 - settings.least_range) * size)
    low = -1 + place * (2 - filled)
    low, high = low + filled * (turn < settings.p_negative), low + filled * (turn >= settings.p_negative)
    return RandomNet(tuple(torch.stack([w for w, _ in layer]) for layer in layers),
                     tuple(torch.stack([b for _, b in layer]) for layer in layers),
                     torch.where(hit < settings.p, share, 0), low, high)


def _draw_one(rng: torch.Generator, settings: RandomNetSettings,
              widths: list[int]) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    wide = torch.rand(settings.layers, generator=rng) < 0.5
    middle = torch.zeros(3, 3)
    middle[1, 1] = 1
    layers = []
    for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        weight, shift = torch.randn(n_out, n_in, 3, 3, generator=rng), torch.randn(n_out, generator=rng)
        layers.append((weight if wide[i] else weight * middle, shift))
    return layers, torch.rand(5, generator=rng)


def apply_random_net(images: torch.Tensor, params: RandomNet) -> torch.Tensor:
    """Returns unit images (B, C, H, W) mixed with what their networks make of them, in the drawn grey values.

    As in the paper, a network's result is scaled to the norm of its image before the two are mixed. Networks see
    images of mean 0 and deviation 1; the paper's segmenter gets such images too, while ours sees grey values as they
    are: so the mixture is brought into a range that is drawn.
    """
    rows = params.share.nonzero()[:, 0]
    if not len(rows):
        return images
    at = rows.to(images.device)
    x = images[at].float()
    sd, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True, correction=0)
    flat = sd < FLAT
    x = (x - mean) / sd.clamp_min(FLAT)
    share = _column(params.share[rows], x)
    mixed = share * _norm_of(_through(x, params, rows), x) + (1 - share) * x
    sd, mean = torch.std_mean(mixed, dim=(1, 2, 3), keepdim=True, correction=0)
    low, high = _column(params.low[rows], x), _column(params.high[rows], x)
    made = (low + high) / 2 + (mixed - mean) / sd.clamp_min(FLAT) * (high - low) / (2 * REACH)
    made = made.clamp(-1, 1)
    return images.index_copy(0, at, torch.where(flat, images[at].float(), made).to(images.dtype))


def _through(x: torch.Tensor, params: RandomNet, rows: torch.Tensor) -> torch.Tensor:
    # One grouped convolution a layer: every image is a group and meets its own kernels.
    n, _, height, width = x.shape
    y = x.reshape(1, -1, height, width)
    for i, (weight, shift) in enumerate(zip(params.weights, params.shifts, strict=True)):
        y = F.leaky_relu(y, SLOPE) if i else y
        y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="replicate"), weight[rows].flatten(0, 1).to(y),
                     shift[rows].flatten().to(y), groups=n)
    return y.reshape(n, -1, height, width)


def _norm_of(made: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    ours, theirs = (t.flatten(1).norm(dim=1)[:, None, None, None] for t in (made, like))
    return made * (theirs / ours.clamp_min(FLAT))


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like)[:, None, None, None]
