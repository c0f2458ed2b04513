"""Layouts: identity, inverses, image and mask moving alike, and what must stay in the frame."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from synth.core.checks import IGNORE, UserError
from synth.core.config import load_config
from synth.core.pairs import DataInfo, memory_set
from synth.core.rng import sample_rng
from synth.draw.sources import transform_pairs
from synth.layouts import (
    IDENTITY,
    Affine,
    Layout,
    LayoutSettings,
    Recombination,
    apply_image,
    apply_layout,
    apply_mask,
    draw_affine,
    draw_fitting,
    layout_from_json,
    layout_to_json,
)
from synth.layouts.warp import sampling_grid

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 4096, (2, 32, 32)).astype(np.uint16)
MASK = RNG.integers(0, 3, (32, 32)).astype(np.uint8)


def blob(size: int = 64, *, radius: float = 0.3, x: float = 0.1, y: float = -0.2) -> np.ndarray:
    """Returns labels (size, size): class 1 in a disc, class 2 in its lower half, 255 in a far corner."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, size),) * 2, indexing="ij")
    disc = np.hypot(rows - y, columns - x) < radius
    mask = np.where(disc & (rows > y), 2, disc).astype(np.uint8)
    mask[:6, :6] = 255
    return mask


def edit(**changes: float | str | tuple[float, ...]) -> Affine:
    """Returns the identity with some parameters changed."""
    return dataclasses.replace(IDENTITY, **changes)


def test_the_identity_changes_nothing() -> None:
    assert np.array_equal(apply_image(IMAGE, IDENTITY), IMAGE) and np.array_equal(apply_mask(MASK, IDENTITY), MASK)
    nearly = edit(rotate_deg=1e-9)  # not the shortcut, but the resampling itself
    assert np.array_equal(apply_image(IMAGE, nearly), IMAGE) and np.array_equal(apply_mask(MASK, nearly), MASK)


def test_a_mirrored_pair_is_mirrored_exactly_and_twice_is_back() -> None:
    flip = edit(flip="horizontal")
    assert np.array_equal(apply_image(IMAGE, flip), IMAGE[..., ::-1])
    assert np.array_equal(apply_mask(MASK, flip), MASK[:, ::-1])
    assert np.array_equal(apply_image(apply_image(IMAGE, flip), flip), IMAGE)
    assert np.array_equal(apply_mask(apply_mask(MASK, flip), flip), MASK)


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -5), (-7, 2)])
def test_a_shift_by_whole_pixels_is_exact(dx: int, dy: int) -> None:
    params = edit(shift_x=dx / 32, shift_y=dy / 32)
    moved, labels = apply_image(IMAGE, params), apply_mask(MASK, params)
    rows, columns = slice(max(dy, 0), 32 + min(dy, 0)), slice(max(dx, 0), 32 + min(dx, 0))
    source_rows, source_columns = slice(max(-dy, 0), 32 + min(-dy, 0)), slice(max(-dx, 0), 32 + min(-dx, 0))
    assert np.array_equal(moved[:, rows, columns], IMAGE[:, source_rows, source_columns])
    assert np.array_equal(labels[rows, columns], MASK[source_rows, source_columns])
    inside = np.zeros((32, 32), bool)
    inside[rows, columns] = True
    assert (labels[~inside] == 0).all(), "what moved in has no label"


@pytest.mark.parametrize("turn", [90, 180])
def test_quarter_turns_are_exact(turn: int) -> None:
    params = edit(rotate_deg=float(turn))
    turned = np.rot90(MASK, k=-turn // 90)  # positive = clockwise on the screen, where y points down
    assert np.array_equal(apply_mask(MASK, params), turned)
    assert np.array_equal(apply_image(IMAGE, params), np.rot90(IMAGE, k=-turn // 90, axes=(1, 2)))


def test_scale_multiplies_the_area() -> None:
    mask = blob(96, radius=0.25, x=0, y=0)
    area = ((mask > 0) & (mask != 255)).sum()
    for scale in (0.8, 1.25):
        moved = apply_mask(mask, edit(scale=scale))
        assert abs(((moved > 0) & (moved != 255)).sum() / (area * scale**2) - 1) < 0.05


def test_image_and_mask_move_alike() -> None:
    mask, settings = blob(radius=0.4), LayoutSettings(scale=(0.7, 1.4), rotate_deg=180, shift=0.3)
    coloured = np.stack([np.where(mask == k, 200, 0) for k in (1, 2)]).astype(np.uint8)
    for seed in range(20):
        params = draw_affine(sample_rng(seed, "layout"), settings)
        moved, labels = apply_image(coloured, params), apply_mask(mask, params)
        assert set(np.unique(labels)) <= {0, 1, 2, 255}
        for k in (1, 2):  # bilinear and nearest part only at outlines, where the colour is between 0 and 200
            assert (moved[k - 1][labels == k] >= 50).all()
            assert moved[k - 1][labels == k].mean() > 185


def test_dtype_and_range_survive_and_nothing_black_moves_in() -> None:
    bright = np.full((1, 32, 32), 4095, np.uint16)
    moved = apply_image(bright, edit(rotate_deg=33.0, shift_x=0.3, scale=0.8))
    assert moved.dtype == np.uint16 and (moved == 4095).all()


def test_drawn_parameters_stay_within_their_settings() -> None:
    settings = LayoutSettings(flip="none", scale=(0.5, 2.0), rotate_deg=10, shift=0.1)
    drawn = [draw_affine(sample_rng(i), settings) for i in range(300)]
    assert all(p.flip == "none" for p in drawn)
    assert all(0.5 <= p.scale <= 2 and abs(p.rotate_deg) <= 10 for p in drawn)
    assert all(max(abs(p.shift_x), abs(p.shift_y)) <= 0.1 for p in drawn)
    assert 0.4 < np.mean([p.scale > 1 for p in drawn]) < 0.6, "as often larger as smaller"
    flips = np.mean([draw_affine(sample_rng(i), LayoutSettings()).flip == "horizontal" for i in range(300)])
    assert 0.4 < flips < 0.6


def test_enough_of_the_foreground_stays_in_the_frame() -> None:
    mask, settings = blob(x=0.75), LayoutSettings(shift=0.4, min_foreground=0.8)
    area = ((mask > 0) & (mask != 255)).sum()
    missed = 0
    for seed in range(40):
        params = draw_fitting(sample_rng(seed), mask, settings)
        moved = apply_mask(mask, params)
        inside = ((moved > 0) & (moved != 255)).sum()
        assert inside >= 0.8 * area * params.scale**2
        first = apply_mask(mask, draw_affine(sample_rng(seed), settings))
        missed += ((first > 0) & (first != 255)).sum() < 0.8 * area * draw_affine(sample_rng(seed), settings).scale**2
    assert missed > 5, "the test draws nothing that would have left the frame"


def test_what_cannot_fit_is_mirrored_at_most() -> None:
    full = np.ones((32, 32), np.uint8)
    settings = LayoutSettings(scale=(1.5, 1.6), min_foreground=1.0)
    for seed in range(5):
        assert dataclasses.replace(draw_fitting(sample_rng(seed), full, settings), flip="none") == IDENTITY
    empty = draw_fitting(sample_rng(0), np.zeros((32, 32), np.uint8), LayoutSettings())
    assert dataclasses.replace(empty, flip="none") == IDENTITY


def test_provenance_tells_the_edit_in_full() -> None:
    params = draw_affine(sample_rng(3), LayoutSettings())
    taken = Recombination("b", "add", 2, draw_affine(sample_rng(4), LayoutSettings()), 4)
    for layout in (Layout(params), Layout(params, "frame", taken)):
        assert layout_from_json(layout_to_json(layout)) == layout
    again = layout_from_json(layout_to_json(Layout(params))).affine
    assert np.array_equal(apply_mask(MASK, again), apply_mask(MASK, params))


@pytest.mark.parametrize("override", ["scale=[0, 1]", "scale=[-1, 1]", "rotate_deg=200", "shift=0.7", "zoom=2",
                                      "elastic=0.2", "recombine=2", "gap_px=0", "keep_in=all"])
def test_impossible_ranges_are_refused(override: str) -> None:
    with pytest.raises(UserError):
        load_config(LayoutSettings, {}, [override])


@pytest.mark.parametrize("word", ["true", "false", "sideways"])
def test_a_mirror_is_named_by_its_axes(word: str) -> None:
    with pytest.raises(UserError, match="flip.*none.*horizontal.*vertical.*both"):
        load_config(LayoutSettings, {}, [f"flip={word}"])


def test_every_mirror_word_does_what_it_says() -> None:
    for word, mirrored in (("vertical", IMAGE[:, ::-1]), ("both", IMAGE[:, ::-1, ::-1])):
        assert np.array_equal(apply_image(IMAGE, edit(flip=word)), mirrored)
        assert np.array_equal(apply_mask(IMAGE[0] % 3, edit(flip=word)), mirrored[0] % 3)
        drawn = {draw_affine(sample_rng(i), LayoutSettings(flip=word)).flip for i in range(60)}
        assert drawn == ({"none", "vertical"} if word == "vertical" else {"none", "horizontal", "vertical", "both"})


def test_a_disc_stays_under_its_mask_when_it_is_bent() -> None:
    mask = (blob(96, radius=0.5, x=0, y=0) % 255 > 0).astype(np.uint8)
    image = np.where(mask == 1, 200, 0).astype(np.uint8)[None]
    settings = LayoutSettings(scale=(1, 1), rotate_deg=0, shift=0, flip="none", elastic=0.04)
    for seed in range(20):
        params = draw_affine(sample_rng(seed), settings)
        moved, labels = apply_image(image, params)[0], apply_mask(mask, params)
        assert (labels != mask).sum() > 50, "nothing was bent"
        assert ((moved >= 100) != (labels == 1)).mean() < 0.01, "image and mask part"


def test_pixels_are_interpolated_once() -> None:
    """The warped ramp is the ramp at the places of the one grid: twice interpolated, its bends would be flattened."""
    ramp = np.tile(np.arange(64, dtype=np.uint16) ** 2, (64, 1))[None]
    params = dataclasses.replace(draw_affine(sample_rng(1), LayoutSettings(elastic=0.02, shift=0.05)), scale=1.5)
    x = ((sampling_grid(params, (64, 64))[0, :, :, 0] + 1) * 64 - 1) / 2
    low = x.floor().clamp(0, 62)
    once = (low**2 + (x - low) * (2 * low + 1)).numpy()
    inside = ((x > 0) & (x < 63)).numpy() & (np.abs(sampling_grid(params, (64, 64))[0, :, :, 1].numpy()) < 0.98)
    assert inside.mean() > 0.5 and np.abs(apply_image(ramp, params)[0] - once)[inside].max() <= 0.51


def test_no_elastic_is_no_elastic_and_the_largest_never_folds() -> None:
    assert draw_affine(sample_rng(0), LayoutSettings(elastic=0)).elastic == ()
    for seed in range(50):
        params = draw_affine(sample_rng(seed), LayoutSettings(elastic=0.05))
        grid = sampling_grid(edit(elastic=params.elastic), (64, 64))[0]
        assert grid[:, :, 0].diff(dim=1).min() > 0 and grid[:, :, 1].diff(dim=0).min() > 0


def test_settings_without_any_edit_copy_the_pair_bit_for_bit() -> None:
    still = LayoutSettings(flip="none", scale=(1, 1), rotate_deg=0, shift=0, elastic=0, recombine=0, keep_in="none")
    layout = Layout(draw_fitting(sample_rng(0), MASK, still))
    placed = apply_layout(IMAGE, MASK, layout)
    assert layout.affine == IDENTITY and np.array_equal(placed.pixels, IMAGE) and np.array_equal(placed.labels, MASK)


@pytest.mark.parametrize("shape", [(100, 300), (240, 80), (120, 120)])
def test_a_rotation_is_one_of_pixels_whatever_the_sides(shape: tuple[int, int]) -> None:
    """A disc stays a disc, and a bar along one axis becomes one of the same length along the other."""
    h, w = shape
    y, x = np.mgrid[:h, :w]
    disc = (((y - h / 2 + 0.5) ** 2 + (x - w / 2 + 0.5) ** 2) <= 25**2).astype(np.uint8)
    turned = apply_mask(disc, dataclasses.replace(IDENTITY, rotate_deg=37.0))
    assert (turned != disc).mean() < 0.01
    bar = ((abs(x - w / 2 + 0.5) < 30) & (abs(y - h / 2 + 0.5) < 6)).astype(np.uint8)
    upright = apply_mask(bar, dataclasses.replace(IDENTITY, rotate_deg=90.0))
    rows, columns = upright.nonzero()
    assert np.ptp(rows) + 1 == pytest.approx(60, abs=1) and np.ptp(columns) + 1 == pytest.approx(12, abs=1)


def test_an_object_mirrored_into_the_frame_is_unknown_where_the_source_shows() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 2:14] = 1
    image = np.where(mask, 200, 50).astype(np.uint8)
    info = DataInfo(("background", "thing"), 1, 8, (0.0, 255.0))
    arrays = memory_set([image], [mask], info, ids=["a"], groups=["a"]).arrays(64)
    layout = LayoutSettings(flip="none", scale=(1, 1), rotate_deg=0, elastic=0, shift=0.2, recombine=0, keep_in="none")
    keys = [f"k{i}" for i in range(30)]
    shown, painted, near = (transform_pairs(arrays, keys, rows=[0], seed=0, layout=layout, shown_px=px)
                            for px in (np.inf, 0.0, 6.0))
    bright = shown.pixels[:, 0] > 125
    assert np.array_equal(shown.pixels, painted.pixels) and set(np.unique(painted.labels)) == {0, 1}
    unlabelled = bright & (painted.labels == 0)
    assert unlabelled.sum() > 0.05 * bright.sum(), "the case must occur"
    # Labels are nearest neighbours, pixels bilinear: they part by half a pixel at outlines.
    assert (bright & (shown.labels == 0)).mean() < 0.005 and (shown.labels[~bright] == IGNORE).mean() < 0.005
    assert np.array_equal(shown.labels == 1, painted.labels == 1)
    doubted = [(s.labels == IGNORE).sum() for s in (painted, near, shown)]
    assert doubted[0] == 0 < doubted[1] < doubted[2]
