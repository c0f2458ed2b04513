"""The one frame detector: what lies round a picture, found alike for layouts and for spectra, and what is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from synth.core.frame import detect_frame, field_of_view, grown_from_corners
from synth.core.space import pixels_to_unit
from synth.layouts import Layout, apply_layout
from synth.layouts.warp import Affine

SIZE = 96
Y, X = (a / (SIZE - 1) * 2 - 1 for a in np.mgrid[:SIZE, :SIZE])


def picture(dark: np.ndarray) -> np.ndarray:
    """Returns noisy tissue, pixels (1, S, S) uint8, black where `dark` (S, S) is True."""
    rng = np.random.default_rng(0)
    tissue = 120 + 40 * gaussian_filter(rng.standard_normal((SIZE, SIZE)), 4) * 8
    made = np.where(dark, 4, tissue) + 2 * rng.standard_normal((SIZE, SIZE))
    return made.clip(0, 255).astype(np.uint8)[None]


def views_of(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the frame as layouts and as spectra see it, (S, S) bool each."""
    inside = field_of_view(pixels_to_unit(pixels[None], (0, 255)))
    return detect_frame(pixels), np.zeros((SIZE, SIZE), bool) if inside is None else ~inside[0, 0].numpy()


BELOW = (Y > 0.6) & (np.abs(X) < 0.5)
ROUND = np.hypot(X, Y) > 1
CORNERS = np.abs(X) + np.abs(Y) > 1.5
SIDE = X < -0.8


@pytest.mark.parametrize("dark", [ROUND, CORNERS, SIDE], ids=["round", "corners", "side"])
def test_layouts_and_spectra_see_one_frame(dark: np.ndarray) -> None:
    for found in views_of(picture(dark)):
        assert (found & dark).sum() / (found | dark).sum() > 0.93


@pytest.mark.parametrize("dark", [BELOW, np.roll(BELOW, -SIZE // 8, 1), np.rot90(BELOW)],
                         ids=["middle", "left of it", "on a side"])
def test_dark_that_touches_a_side_away_from_corners_is_part_of_the_picture(dark: np.ndarray) -> None:
    for found in views_of(picture(dark)):
        assert not found.any()


def test_what_is_dark_below_a_brain_does_not_become_a_black_box() -> None:
    """Moved up, the dark strip was continued to the border as the frame of an endoscope is."""
    edit = Layout(Affine("none", 1.0, 0.0, 0.0, -0.25), "frame")
    moved = apply_layout(picture(BELOW), np.zeros((SIZE, SIZE), np.uint8), edit)
    assert not moved.keep_in.any() and (moved.pixels[0, -4:, 40:56] > 60).all(), "mirrored, so tissue again"
    corners = apply_layout(picture(CORNERS), np.zeros((SIZE, SIZE), np.uint8), edit)
    assert corners.keep_in.any()


def test_a_dark_place_within_the_picture_is_no_frame_though_the_frame_is() -> None:
    hole = np.hypot(X - 0.2, Y + 0.1) < 0.2
    for found in views_of(picture(ROUND | hole)):
        assert found[ROUND].mean() > 0.95 and not found[hole].any()


def test_an_image_has_its_frame_alone_and_in_a_batch() -> None:
    images = torch.cat([pixels_to_unit(picture(d)[None], (0, 255)) for d in (ROUND, BELOW, CORNERS)])
    together = field_of_view(images)
    for row, image in enumerate(images):
        alone = field_of_view(image[None])
        assert torch.equal(together[row], torch.ones_like(together[row]) if alone is None else alone[0])


def test_regions_grow_round_bends_and_stop_at_gaps() -> None:
    maze = torch.tensor([[1, 0, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 1], [0, 0, 0, 0, 1], [0, 1, 1, 0, 0]]).bool()
    whole = torch.zeros(40, 40, dtype=torch.bool)
    whole[10:15, 10:15] = maze
    whole[0:11, 10] = True
    whole[0, 0:11] = True
    found = grown_from_corners(whole[None])[0]
    assert found[10:15, 10:15].sum() == maze.sum() - 2 and not found[14, 11:13].any()
