"""The card and the pictures of a set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from phantom import make_phantom
from PIL import Image
from tiny import half_strict, squares, tiny_pipeline

import synth
from synth.card import dataset_card
from synth.show import outlined, save_grid, summary, view


def card(n_kept: int = 5, n_rejected: int = 2) -> str:
    """Returns a card."""
    return dataset_card(n_kept=n_kept, n_rejected=n_rejected, n_asked=6, classes=("background", "polyp"),
                        generator="abc", settings='{"eta": 1.0}', groups=("g2", "g1", "g2"))


def test_the_cards_head_is_what_the_hub_reads() -> None:
    head = yaml.safe_load(card().split("---")[1])
    files = head["configs"][0]["data_files"]
    assert [(f["split"], f["path"]) for f in files] == [("train", "data/train-*.parquet"),
                                                        ("rejected", "data/rejected-*.parquet")]
    assert head["size_categories"] == ["n<1K"] and "synthetic" in head["tags"]
    assert len(yaml.safe_load(card(n_rejected=0).split("---")[1])["configs"][0]["data_files"]) == 1
    assert yaml.safe_load(card(n_kept=2000).split("---")[1])["size_categories"] == ["1K<n<10K"]
    assert yaml.safe_load(card(n_kept=300_000).split("---")[1])["size_categories"] == ["100K<n<1M"]


def test_the_card_counts_and_warns() -> None:
    text = card()
    assert "5 pairs kept of 7 drawn (6 asked for)" in text and "1 = polyp" in text and "g1, g2" in text
    assert "not anonymous" in " ".join(text.split()) and "--without-group" in text


def test_a_drawn_set_is_summed_up(tmp_path: Path) -> None:
    pairs = squares(6)
    synth.draw(tiny_pipeline(), pairs, n=5, seed=3, gates=half_strict(pairs), out=tmp_path / "made",
               config={"shard_size": 2, "batch_size": 3, "max_tries": 9})
    lines = summary(tmp_path / "made")
    assert lines[0].startswith(f"{tmp_path}/made: 5 pairs, 1 channel(s), 8 bit") and "square" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["correlation", "spectrum"]
    assert "rejected: correlation" in lines[3]


@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (3, 8), (1, 16)])
def test_pixels_are_shown_over_their_range(channels: int, bit_depth: int) -> None:
    info = make_phantom(1, size=16, channels=channels, bit_depth=bit_depth).info
    top = info.intensity_range[1]
    pixels = np.zeros((channels, 8, 8), info.dtype)
    pixels[:, :4] = round(top)
    rgb = view(pixels, info)
    assert rgb.shape == (8, 8, 3) and rgb.dtype == np.uint8
    assert (rgb[:4] == 255).all() and (rgb[4:] == 0).all()


def test_outlines_lie_on_the_rim_of_each_class_and_ignore_is_hatched() -> None:
    mask = np.zeros((12, 12), np.uint8)
    mask[2:7, 2:7], mask[9:, 9:] = 1, 255
    rgb = np.full((12, 12, 3), 10, np.uint8)
    changed = (outlined(rgb, mask) != rgb).any(2)
    assert not changed[3:6, 3:6].any() and not changed[mask == 0].any()
    assert changed[2, 2:7].all() and changed[2:7, 6].all()
    assert 0 < changed[mask == 255].sum() < 9
    assert (rgb == 10).all(), "the input stays"


def test_a_grid_holds_every_pair_twice(tmp_path: Path) -> None:
    pairs = make_phantom(5, size=32)
    save_grid(pairs, tmp_path / "grid.png", n=5, columns=4, side=40)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (4 * 40, 2 * 2 * 40) and grid.mode == "RGB"
        pixels = np.asarray(grid)
    assert (pixels[80:, 40:] == 255).all(), "empty places are white"
    assert not np.array_equal(pixels[:40, :40], pixels[40:80, :40]), "the lower one shows its mask"
