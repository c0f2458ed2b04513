"""The data set card of a drawn set."""

from __future__ import annotations

from collections.abc import Sequence

_CARD = """---
task_categories: [image-segmentation]
tags: [synthetic, medical]
size_categories: ["{size}"]
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
{rejected}---

# Synthetic pairs

{n_kept} pairs kept of {n_drawn} drawn ({n_asked} asked for). Each row names its parents, its seed, the generator
(`{generator}`), the edit of its layout, the scores of the gates, and their verdict. Label 255 means ignore.

- Classes: {classes}
- Parent groups: {groups}
- Sampler: `{settings}`

{note}Every image shows a verbatim, transformed part of a real patient's image (its foreground, or, where objects
were repainted or inserted, its surroundings), or was drawn by a network that saw such images: this set is not
anonymous, and must be handled like the images it came from. `synth export --without-group NAME` removes every child of
a group.
"""

RECOLOURED = """Nothing here was painted: each image is a real training image in another appearance, and its mask is
the one that came with it. So no picture is new: its correlation with the training images is noted and not judged, and
these pairs add appearances to a training set, no anatomy. The gates that apply are the judge's faithfulness and, where
asked for, the spectrum.

"""
"""What the card of a set says whose generator changes amplitudes alone."""

MOVED = """Of the layouts {moved} of {n_kept} are labelled maps that were moved: the shape model, which was to draw all
of them, found no plausible new one in their place.

"""
"""What the card of a set says some of whose layouts the shape model did not draw."""


_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def _size_category(n: int) -> str:
    return next((name for most, name in _SIZES.items() if n < most), "1M<n<10M")


def dataset_card(  # noqa: PLR0913 - what stands on it, word by word
        *, n_kept: int, n_rejected: int, n_asked: int, classes: Sequence[str], generator: str,
        settings: str, groups: Sequence[str], note: str = "") -> str:
    """Returns the card as Markdown with the YAML head that the hub and `datasets` read.

    Args:
        note: what else a reader must know of the pairs, a paragraph.
    """
    rejected = "  - split: rejected\n    path: data/rejected-*.parquet\n" if n_rejected else ""
    return _CARD.format(size=_size_category(n_kept), rejected=rejected, n_kept=n_kept, n_drawn=n_kept + n_rejected,
                        n_asked=n_asked, generator=generator, settings=settings, note=note,
                        classes=", ".join(f"{i} = {c}" for i, c in enumerate(classes)),
                        groups=", ".join(sorted(set(groups))))
