"""What the pipelines share: how they are called, like any of diffusers, saved whole, and known by what they hold."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import nn

from synth.core.checks import UserError
from synth.core.files import open_to_others, room_for, sha256, write_text
from synth.core.pairs import DataInfo
from synth.core.space import from_channels, unit_to_pixels


@dataclass
class DrawnOutput(BaseOutput):
    """Drawn images: unit (B, C, H, W) for "pt", (B, H, W, C) in [0, 1] for "np", a list for "pil"."""

    images: torch.Tensor | np.ndarray | list[Image.Image]


def unit_to_output(unit: torch.Tensor, output_type: str) -> DrawnOutput:
    """Returns unit images (B, C, H, W) in the form "pt", "np" or "pil"."""
    if output_type == "pt":
        return DrawnOutput(images=unit)
    if output_type == "np":
        return DrawnOutput(images=((unit + 1) / 2).permute(0, 2, 3, 1).numpy())
    pixels = unit_to_pixels(unit, (0.0, 255.0), np.dtype(np.uint8))
    return DrawnOutput(images=[Image.fromarray(from_channels(p)) for p in pixels])


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


def own_config(part: ConfigMixin) -> dict[str, object]:
    """Returns the configuration of a part. Keys that begin with "_" say where it was loaded from, not what it is."""
    return {k: v for k, v in part.config.items() if not k.startswith("_")}


def check_depth(pipeline: DiffusionPipeline, info: DataInfo, where: str) -> None:
    """Returns nothing; raises if images are of another bit depth than those that `pipeline` was fitted on.

    Over an 8-bit range all 16-bit pixels are white, and over a 16-bit one all 8-bit pixels black. A pipeline that was
    saved before the depth was is told by its range.

    Raises:
        UserError: naming `where`.
    """
    depth = pipeline.config.get("bit_depth") or (8 if pipeline.config.unit_high <= 255 else 16)
    if info.bit_depth != depth:
        raise UserError(where, rule=f"images of {info.bit_depth} bit, and {type(pipeline).__name__} was fitted on "
                        f"{depth} bit", repair=f"give images of {depth} bit, exported as those of the fit were")


def weights_hash(net: nn.Module) -> str:
    """Returns the hexadecimal SHA-256 of all weights of a network."""
    return sha256(b"".join(v.detach().cpu().contiguous().numpy().tobytes() for v in net.state_dict().values()))


def aligned(net: nn.Module) -> nn.Module:
    """Returns `net`, its weights moved to memory of their own.

    Those of a loaded file lie at any address in it, and a product of few rows rounds otherwise there: without this a
    loaded network differs from the saved one in the last bit.
    """
    for parameter in net.parameters():
        parameter.data = parameter.data.clone()
    return net


def save_pipeline(pipeline: DiffusionPipeline, out: Path) -> None:
    """Moves the saved pipeline into `out`, its index last: a folder with an index is a whole pipeline.

    Raises:
        UserError: if the device is full; what was there is untouched.
    """
    staging = out / ".pipeline"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with room_for(out):
            pipeline.save_pretrained(staging, safe_serialization=True)
        for weights in staging.rglob("*.safetensors"):
            open_to_others(weights)
        for part in sorted(staging.iterdir(), key=lambda p: p.name == "model_index.json"):
            target = out / part.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(part, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def change_index(folder: Path, words: dict[str, object]) -> None:
    """Makes the index of the pipeline saved in `folder` say `words`, settings by name; its networks are untouched."""
    index = folder / "model_index.json"
    held = json.loads(index.read_text(encoding="utf-8"))
    if {**held, **words} != held:
        write_text(index, json.dumps({**held, **words}, indent=2, sort_keys=True) + "\n")


@contextmanager
def quiet() -> Iterator[None]:
    """Returns a context without diffusers' own progress bars about loading a few small files."""
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.enable_progress_bar()
