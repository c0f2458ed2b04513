"""The control: foregrounds pasted onto other real images, with the labels that are true of the result."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tiny import brightness_judge, files_of, squares

import synth
from synth.core.pairs import Arrays, ImageSet, PairSet, memory_set
from synth.diffusion.inpaint import blend_alpha
from synth.draw.painters import clear_backgrounds, paste_painter
from synth.draw.shards import kept_hash
from synth.draw.sources import Sources, transform_pairs
from synth.layouts import LayoutSettings

PAIRS = squares(6)
CONFIG = {"shard_size": 2, "batch_size": 3, "max_tries": 9}


def rows_for(labelled: Arrays, n: int) -> Sources:
    """Returns n transformed sources of `labelled`."""
    return transform_pairs(labelled, [f"k{i}" for i in range(n)], rows=range(len(labelled)), seed=2,
                           layout=LayoutSettings())


def test_a_pasted_foreground_joins_the_labels_below_it() -> None:
    labelled = PAIRS.arrays(32)
    sources = rows_for(labelled, 12)
    painted = paste_painter(labelled, None, seed=2, blend=lambda keep: blend_alpha(keep, width_px=4))(sources)
    for i in range(12):
        name, group = painted.others[i]
        below = labelled.ids.index(name)
        assert below != sources.rows[i] and group == labelled.groups[below]
        keep, under, label = sources.labels[i] > 0, labelled.masks[below], painted.labels[i]
        assert np.array_equal(painted.pixels[i][:, keep], sources.pixels[i][:, keep])
        assert (label[keep] == 1).all()
        alpha = blend_alpha(torch.from_numpy(keep)[None], width_px=4)[0, 0].numpy()
        rim, far = (alpha > 0) & ~keep, alpha == 0
        assert np.array_equal(label[far], under[far])
        assert np.array_equal(painted.pixels[i][:, far], labelled.images[below][:, far])
        assert (label[rim & (under == 1)] == 255).all() and (label[rim & (under == 0)] == 0).all()


def test_the_rim_is_ignored_where_the_source_is_not_sure_itself() -> None:
    labelled = PAIRS.arrays(32)
    sources = rows_for(labelled, 4)
    doubtful = np.where(sources.labels == 0, 255, sources.labels).astype(np.uint8)
    painter = paste_painter(labelled, None, seed=2, blend=lambda keep: blend_alpha(keep, width_px=4))
    painted = painter(dataclasses.replace(sources, labels=doubtful))
    for i in range(4):
        keep = sources.labels[i] > 0
        alpha = blend_alpha(torch.from_numpy(keep)[None], width_px=4)[0, 0].numpy()
        assert (painted.labels[i][(alpha > 0) & ~keep] == 255).all()


def pile(n_clear: int = 3, n_full: int = 3) -> ImageSet:
    """Returns unlabelled images: some without a square, some with one."""
    pairs = squares(n_clear + n_full, seed=4)
    images = [np.where((p.mask == 1) & (i < n_clear), 80, p.image).astype(np.uint8) for i, p in enumerate(pairs)]
    return memory_set(images, None, pairs.info, ids=[f"u{i}" for i in range(len(images))],
                      groups=[f"pile{i}" for i in range(len(images))])


def test_only_images_without_confident_foreground_may_carry_a_paste() -> None:
    clear = clear_backgrounds(pile().arrays(32), brightness_judge, confidence=0.9, max_share=0.002)
    assert clear.ids == ("u0", "u1", "u2") and (clear.labels == 0).all()
    doubting = clear_backgrounds(pile().arrays(32), lambda x: torch.stack([x[:, 0] * 0 + 0.7, x[:, 0] * 0 + 0.3], 1),
                                 confidence=0.9, max_share=0.002)
    assert len(doubting.ids) == 6 and (doubting.labels == 255).all(), "doubtful pixels are no background"
    none = clear_backgrounds(pile(0, 4).arrays(32), brightness_judge, confidence=0.9, max_share=0.002)
    assert none.ids == () and none.labels.shape == (0, 32, 32)


def copies(out: Path, *, n: int = 24, judge: object = brightness_judge, unlabelled: ImageSet | None = None) -> PairSet:
    """Returns n copy-pasted pairs."""
    pairs = synth.draw_copypaste(PAIRS, unlabelled, predict=judge, judge="j", n=n, seed=3, size=32, out=out,
                                 config=CONFIG)
    assert pairs is not None
    return pairs


def test_copy_paste_uses_both_kinds_of_background_and_the_sources_of_draw(tmp_path: Path) -> None:
    made = copies(tmp_path / "paste", unlabelled=pile())
    others = Counter(item.made.parents[1][0] for item in made.items)
    assert others["u"] >= 5 and others["s"] >= 5
    assert {p for item in made.items for p in item.made.parents if p.startswith("u")} <= {"u0", "u1", "u2"}
    assert all(len(item.made.parent_groups) in (1, 2, 3) for item in made.items)
    source = synth.draw(None, PAIRS, n=24, seed=3, out=tmp_path / "source", config=CONFIG, size=32)
    for a, b in zip(made, source, strict=True):
        keep = b.mask == 1
        assert a.made.layout == b.made.layout and np.array_equal(a.image[keep], b.image[keep])
        assert a.made.kept_sha256 == kept_hash(a.image, a.mask)
    assert synth.verify_shards(tmp_path / "paste") == []
    copies(tmp_path / "again", unlabelled=pile())
    assert files_of(tmp_path / "again") == files_of(tmp_path / "paste")


def test_without_a_judge_or_a_clear_image_only_labelled_backgrounds_are_used(tmp_path: Path) -> None:
    for name, judge, unlabelled in (("no judge", None, pile()), ("no pile", brightness_judge, None),
                                    ("all full", brightness_judge, pile(0, 4))):
        made = copies(tmp_path / name, n=6, judge=judge, unlabelled=unlabelled)
        assert all(item.made.parents[1].startswith("s") for item in made.items)
