"""The command `synth translate`: real images without masks in other styles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from synth.commands.data import take_data
from synth.core.checks import UserError
from synth.core.config import to_yaml
from synth.core.pairs import ImageSet
from synth.core.shell import refuse, required, say, take, take_number
from synth.draw import translate_images
from synth.draw.modes import with_changes
from synth.fit import load_generator
from synth.formats import load_images


def run_translate(folder: Path, overrides: Sequence[str], *, dry_run: bool) -> None:
    """Runs `synth translate GENERATOR`, and says how many images were written.

    Raises:
        UserError: for unknown settings, and as `translate_images`.
    """
    data, rest = take_data(overrides)
    style, rest = take(rest, "style")
    out, rest = take(rest, "out")
    originals, rest = take(rest, "originals")
    n, rest = take_number(rest, "n", 1)
    seed, rest = take_number(rest, "seed", 0)
    refuse(rest, "style=, n=, seed=, originals=, data. and out=")
    if originals not in (None, "true", "false"):
        raise UserError(f"originals={originals}", rule="it is true or false", repair="write originals=false")
    generator = with_changes(load_generator(folder), {"style": style} if style else {})
    if dry_run:
        say(f"generator: {generator.content_hash()}\nstyle: {style or 'another'}\nn: {n}\nseed: {seed}\n"
            f"originals: {originals or 'true'}\nout: {out}\ndata:\n" + indent(to_yaml(data), "  ").rstrip())
        return
    pile = required(data.unlabelled, "data.unlabelled", "data/unlabelled")
    images = load_images(pile, channels=generator.channels)
    if images.info.bit_depth == 16:  # their range, measured on other images, would be another one
        info = dataclasses.replace(images.info, intensity_range=generator.intensity_range)
        images = ImageSet(images.items, info, where=images.where, taught=images.taught)
    found = translate_images(generator, images, out=required(out, "out", "data/translated"), n=n, seed=seed,
                             originals=originals != "false")
    if found is not None:
        say(f"{out}: {len(found)} images, {len(images) * n} of them translated")
