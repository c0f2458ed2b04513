"""What goes into and comes out of the pipeline when it is called like any of diffusers: generators, forms of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from synth.core.checks import UserError
from synth.core.space import from_channels, unit_to_pixels


@dataclass
class InpaintOutput(BaseOutput):
    """Painted images: unit (B, C, H, W) for "pt", (B, H, W, C) in [0, 1] for "np", a list for "pil"."""

    images: torch.Tensor | np.ndarray | list[Image.Image]


def unit_to_output(unit: torch.Tensor, output_type: str) -> InpaintOutput:
    """Returns unit images (B, C, H, W) in the form "pt", "np" or "pil"."""
    if output_type == "pt":
        return InpaintOutput(images=unit)
    if output_type == "np":
        return InpaintOutput(images=((unit + 1) / 2).permute(0, 2, 3, 1).numpy())
    pixels = unit_to_pixels(unit, (0.0, 255.0), np.dtype(np.uint8))
    return InpaintOutput(images=[Image.fromarray(from_channels(p)) for p in pixels])


def draw_seeds(n: int, seeds: Sequence[int] | None,
               generator: torch.Generator | Sequence[torch.Generator] | None) -> Sequence[int]:
    """Returns one seed per image: as given, or drawn from the generator(s).

    Raises:
        UserError: if both are given.
    """
    if seeds is not None and generator is not None:
        raise UserError("seeds and generator", rule="both say where the noise comes from", repair="give one of them")
    if seeds is not None:
        return seeds
    if isinstance(generator, Sequence):
        return [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generator]
    device = generator.device if generator is not None else "cpu"
    return torch.randint(2**62, (n,), generator=generator, device=device).tolist()
