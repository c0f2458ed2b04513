"""The command `synth label`: labels, with confidence, for images that have none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synth.commands.data import take_data
from synth.core.shell import refuse, required, say, take
from synth.formats import load_images
from synth.gan.unpaired.label import label, load_labeller


def run_label(generator: Path, overrides: Sequence[str], *, dry_run: bool) -> None:
    """Labels the unlabelled images with a fit of kind unpaired, and says how many there are.

    Raises:
        UserError: for unknown words, and as `label`.
    """
    data, rest = take_data(overrides)
    out, rest = take(rest, "out")
    refuse(rest, "data.unlabelled=, data.channels= and out=")
    labeller = load_labeller(generator)
    images = load_images(required(data.unlabelled, "data.unlabelled", "data/unlabelled"), channels=data.channels)
    out = required(out, "out", "data/labels")
    if dry_run:
        say(f"would label {len(images)} images in {out}")
        return
    label(labeller, images, out=out)
    say(f"{out}: labels of {len(images)} images")
