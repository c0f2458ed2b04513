"""The benchmark of a start without labels: no patient on two sides, controls that know nothing, a quick run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from phantom import make_phantom

from synth.core.pairs import PairSet, memory_set
from synth.formats import write_folder

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import zero_label  # noqa: E402


def test_no_group_is_in_two_parts_and_the_piles_masks_are_out_of_reach() -> None:
    for draw in range(3):
        parts = zero_label.draw_parts(make_phantom(40, size=32, n_groups=10), draw, n_masks=9, cap=None)
        sides = [set(parts.known.groups), set(parts.pile.groups), set(parts.test.groups)]
        assert all(sides) and not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
        assert len(parts.known) == 9 and all(pair.mask is None for pair in parts.pile)


@pytest.mark.parametrize("inverted", [False, True])
def test_otsu_finds_an_object_of_either_polarity_and_passes_the_frame_over(inverted: bool) -> None:  # noqa: FBT001
    mask, frame = np.zeros((32, 32), np.uint8), np.zeros((32, 32), bool)
    mask[10:20, 8:22], frame[:3] = 1, True
    grey = np.where(mask > 0, 90, 160) + np.random.default_rng(0).integers(0, 20, mask.shape)
    grey = np.where(frame, 0, 255 - grey if inverted else grey)
    assert np.array_equal(zero_label.otsu(grey[None], frame), mask)


def test_classes_are_joined(tmp_path: Path) -> None:
    write_folder(make_phantom(4, size=32, n_classes=4), tmp_path / "covid_cxr")
    pairs = zero_label.read_set(tmp_path / "covid_cxr", 32)
    assert pairs.info.classes == ("background", "lung")
    before = make_phantom(4, size=32, n_classes=4)
    assert all(np.array_equal(a.mask, np.isin(b.mask, (1, 2))) for a, b in zip(pairs, before, strict=True))


def large_objects(n: int) -> PairSet:
    """Returns pairs of 10 groups whose object is bright and large: after a fit of seconds some of it is labelled."""
    info, rng = make_phantom(1, size=32, channels=3).info, np.random.default_rng(0)
    masks = [np.zeros((32, 32), np.uint8) for _ in range(n)]
    for mask in masks:
        top, left = rng.integers(2, 10, 2)
        mask[top:top + 18, left:left + 18] = 1
    images = [np.clip(60 + 120 * m[..., None] + rng.normal(0, 10, (32, 32, 3)), 0, 255).astype(np.uint8) for m in masks]
    groups = [f"g{i % 10}" for i in range(n)]
    return memory_set(images, masks, info, ids=[f"pair{i:02d}" for i in range(n)], groups=groups)


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    write_folder(large_objects(40), tmp_path / "data" / "isic_skin")
    done = subprocess.run([sys.executable, str(BENCHMARKS / "zero_label.py"), "--quick", "--threads", "1", "--data",
                           str(tmp_path / "data"), "--sets", "isic_skin", "--out", str(tmp_path / "out"), "--json",
                           str(tmp_path / "rows.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["name"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert {"dice/isic_skin/labeller", "dice_diff/isic_skin/labeller-otsu", "dice_labels/isic_skin"} <= rows
