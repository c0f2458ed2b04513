"""Real images without masks in another appearance: a folder of further unlabelled images, each with its parent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from synth.core.checks import UserError
from synth.core.pairs import ImageSet, Item, Provenance
from synth.core.rng import derive_seed, one_thread
from synth.core.space import from_channels, pixels_to_unit, resize_image, to_channels, unit_to_pixels
from synth.formats import load_images, write_imagefolder
from synth.gan.restyle.pipeline import AppearancePipeline
from synth.generator import Generator, shows_source


def translate_images(generator: Generator, images: ImageSet, *, out: str | Path, n: int = 1, seed: int = 0,
                     originals: bool = True) -> ImageSet:
    """Returns the images in other appearances, n of each, written to `out` as an imagefolder at the generator's size.

    An image and its translations share a group, so a split by groups never parts them. Which styles are drawn follows
    (seed, id): the same for any order of the images.

    Args:
        generator: one that shows its source, of kind appearance (its style set or not) or spectral.
        originals: whether the images themselves are written too, as they are: one folder then is all a trainer needs.

    Raises:
        UserError: if the generator paints, the images do not fit it, or `out` is not empty.
    """
    if not shows_source(generator.sampler_settings()):
        raise UserError(f"generator of kind {generator.kind}", rule="it paints; images without masks would no longer "
                        "show what they showed", repair="give one of kind appearance or spectral")
    info = images.info
    if (generator.channels, generator.intensity_range) != (info.channels, tuple(info.intensity_range)):
        raise UserError(images.where, rule=f"images of {info.channels} channel(s), range {info.intensity_range}, do "
                        f"not fit a generator of {generator.channels} channel(s), range {generator.intensity_range}",
                        repair="give the kind of images it was fitted on")
    if n < 1:
        raise UserError(f"n={n}", rule="there is nothing to translate", repair="write n=1")
    made = [_item(generator, images, i, k, seed=seed) for i in range(len(images)) for k in range(n)]
    with one_thread():
        write_imagefolder(ImageSet([*(images.items if originals else ()), *made], info), Path(out))
    return load_images(out, like=info)


def _item(generator: Generator, images: ImageSet, row: int, k: int, *, seed: int) -> Item:
    """Returns translation k of image `row`; it is made when it is read."""
    parent = images.items[row]
    own_seed = derive_seed(seed, "translated", parent.id, k)

    def unit() -> torch.Tensor:
        pixels = resize_image(to_channels(parent.read()[0]), generator.size)
        return pixels_to_unit(pixels[None], generator.intensity_range)

    def read() -> tuple[np.ndarray, None]:
        image = unit()
        drawn = generator.sample(image, torch.zeros(1, *image.shape[2:], dtype=torch.long), seeds=[own_seed])
        return from_channels(unit_to_pixels(drawn, generator.intensity_range, images.info.dtype)[0]), None

    style = {"style": generator.styles[generator.styles_for(unit(), seeds=[own_seed])[0]]} if isinstance(
        generator, AppearancePipeline) else {}
    made = Provenance((parent.id,), (parent.group,), own_seed, generator.content_hash(),
                      json.dumps({"translated": True, **style}, sort_keys=True),
                      json.dumps(generator.sampler_settings(), sort_keys=True))
    return Item(f"{parent.id}-{generator.kind}-{k}", parent.group, read, "synthetic", made)
