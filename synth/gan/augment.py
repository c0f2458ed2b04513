"""DiffAugment (Zhao et al. 2020): all that the discriminator sees, real and drawn alike, is altered at random.

Few images are then not learnt by heart: all the discriminator may use is what survives the alterations, and they let
the gradient through. Parameters are drawn first. Colour touches images alone; what moves or cuts them does the same to
the labels and the condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Alteration:
    """One alteration per image.

    Attributes:
        brightness: added, (B,). saturation, contrast: factors, (B,).
        shift: rows and columns to move by, px, (B, 2). hole: rows and columns at which a hole begins and ends, px,
            (B, 4); empty where begin and end are equal.
    """

    brightness: torch.Tensor
    saturation: torch.Tensor
    contrast: torch.Tensor
    shift: torch.Tensor
    hole: torch.Tensor

    def repeat(self, n: int) -> Alteration:
        """Returns the same alterations n times over, for n batches laid one after another."""
        return Alteration(*(torch.cat([getattr(self, f)] * n) for f in self.__dataclass_fields__))


def draw_alteration(n: int, size: tuple[int, int], *, strength: float) -> Alteration:
    """Returns alterations for n images of `size` px, from torch's global generator; strength 0 = none, 1 = the paper's.

    At 1: brightness within 0.5 of the unit range's half, saturation 0 to 2, contrast 0.5 to 1.5, a move of up to an
    eighth of the side and, in half of the images, a hole of half the side: with one in every image (as in the paper)
    the translator draws holes itself.
    """
    u, sides = torch.rand(3, n), torch.tensor(size)
    far = (strength * sides / 8).round().long()
    shift = (torch.rand(n, 2) * (2 * far + 1)).long().clamp(max=2 * far) - far
    half = (strength * sides / 4).round().long() * (torch.rand(n, 1) < 0.5)
    centre = (torch.rand(n, 2) * sides).long()
    hole = torch.cat([centre - half, centre + half], 1).clamp(min=0)
    return Alteration(brightness=strength * (u[0] - 0.5), saturation=1 + strength * (2 * u[1] - 1),
                      contrast=1 + strength * (u[2] - 0.5), shift=shift, hole=hole)


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like)[:, None, None, None]


def alter_colour(images: torch.Tensor, how: Alteration) -> torch.Tensor:
    """Returns images (B, C, H, W) in another brightness, saturation (of grey ones nothing) and contrast."""
    x = images + _column(how.brightness, images)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _column(how.saturation, x) if x.shape[1] > 1 else x
    middle = x.mean((1, 2, 3), keepdim=True)
    return middle + (x - middle) * _column(how.contrast, x)


def alter_geometry(values: torch.Tensor, how: Alteration, *, fill: float = 0.0) -> torch.Tensor:
    """Returns values (B, C, H, W) moved and with their hole; what moves in and what is cut is `fill`."""
    height, width = values.shape[-2:]
    rows = torch.arange(height, device=values.device)[None] - how.shift[:, :1].to(values.device)
    columns = torch.arange(width, device=values.device)[None] - how.shift[:, 1:].to(values.device)
    batch = torch.arange(len(values), device=values.device)[:, None, None]
    moved = values[batch, :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    moved = moved.movedim(-1, 1)
    there = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return torch.where((there & ~_holes(how, (height, width), values.device))[:, None], moved, fill)


def _holes(how: Alteration, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Returns where the holes are, (B, H, W) bool."""
    top, left, bottom, right = how.hole.to(device)[:, :, None].unbind(1)
    row, column = (torch.arange(n, device=device)[None] for n in size)
    return ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None, :]


def alter_images(images: torch.Tensor, how: Alteration) -> torch.Tensor:
    """Returns images (B, C, H, W), altered in colour and geometry."""
    return alter_geometry(alter_colour(images, how), how)


def alter_labels(labels: torch.Tensor, how: Alteration, *, fill: int) -> torch.Tensor:
    """Returns labels (B, H, W), altered as their images; `fill` where nothing is known."""
    return alter_geometry(labels[:, None].float(), how, fill=float(fill))[:, 0].round().to(labels.dtype)
