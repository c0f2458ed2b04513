"""Foreground in another pair's surroundings: where it may go, what is removed, and the frame that shows through."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import ndimage
from tiny import squares

from synth.core.checks import IGNORE
from synth.core.pairs import Arrays, DataInfo
from synth.draw.sources import Sources, transform_pairs
from synth.layouts import (
    IDENTITY,
    Layout,
    LayoutSettings,
    apply_layout,
    detect_frame,
    fits,
    keep_in_of,
    layout_from_json,
    learn_anatomy,
    mirrored_in,
    share_with_several,
)
from synth.layouts.recombine import Recombination, fill, put

LABELLED = squares(6, size=48).arrays(48)
ALWAYS = LayoutSettings(recombine=1)
RNG = np.random.default_rng(0)
Y, X = np.mgrid[-1:1:96j, -1:1:96j]


def drawn(n: int = 40, *, labelled: Arrays = LABELLED, settings: LayoutSettings = ALWAYS, seed: int = 0) -> Sources:
    """Returns n transformed sources."""
    return transform_pairs(labelled, [f"k{i}" for i in range(n)], rows=range(len(labelled)), seed=seed,
                           layout=settings)


def test_an_added_object_never_comes_near_another_one() -> None:
    settings = LayoutSettings(recombine=1, recombine_mode="add")
    sources, added = drawn(200, settings=settings), 0
    for row, text, labels, pixels in zip(sources.rows, sources.layouts, sources.labels, sources.pixels, strict=True):
        layout = layout_from_json(text)
        own = apply_layout(LABELLED.images[row], LABELLED.masks[row], dataclasses.replace(layout, recombined=None))
        if layout.recombined is None:
            assert np.array_equal(labels, own.labels)
            continue
        added += 1
        new = (labels == 1) & (own.labels == 0)
        assert np.array_equal(labels[own.labels == 1], own.labels[own.labels == 1]), "the own object stays"
        assert new.any() and ndimage.distance_transform_edt(own.labels == 0)[new].min() > settings.gap_px
        assert np.array_equal(pixels[:, own.labels == 1], own.pixels[:, own.labels == 1])
        assert (pixels[:, ndimage.binary_erosion(new)] > 200).all(), "the other's own pixels"
    assert added > 100


def test_replacing_leaves_nothing_of_the_own_foreground() -> None:
    sources, replaced = drawn(60, settings=LayoutSettings(recombine=1, recombine_mode="replace")), 0
    for row, text, labels, pixels in zip(sources.rows, sources.layouts, sources.labels, sources.pixels, strict=True):
        layout = layout_from_json(text)
        if layout.recombined is None:
            continue
        replaced += 1
        own = apply_layout(LABELLED.images[row], LABELLED.masks[row], dataclasses.replace(layout, recombined=None))
        assert ndimage.label(labels == 1)[1] == 1
        centre, before = (np.array(ndimage.center_of_mass(m == 1)) for m in (labels, own.labels))
        assert np.abs(centre - before).max() < 3
        far = (own.labels == 1) & (ndimage.distance_transform_edt(labels != 1) > layout.recombined.gap_px)
        assert (pixels[:, far] < 160).all(), "the removed square still shines through"
    assert replaced > 30


def test_where_nothing_is_painted_what_a_removed_object_was_filled_with_is_unknown() -> None:
    settings, seen = LayoutSettings(recombine=1, recombine_mode="replace"), 0
    given = {"labelled": LABELLED, "keys": [f"k{i}" for i in range(20)], "rows": range(len(LABELLED)), "seed": 0,
             "layout": settings, "shown_px": math.inf}
    shown, painted = transform_pairs(**given, painted=False), transform_pairs(**given)
    for row, text, labels, covered in zip(shown.rows, shown.layouts, shown.labels, painted.labels, strict=True):
        layout = layout_from_json(text)
        if layout.recombined is None:
            continue
        own = apply_layout(LABELLED.images[row], LABELLED.masks[row], dataclasses.replace(layout, recombined=None))
        bare = (own.labels == 1) & (covered == 0)
        assert (labels[bare] == 255).all() and np.array_equal(labels == 1, covered == 1)
        seen += bool(bare.any())
    assert seen > 5


def test_both_parents_are_named() -> None:
    sources = drawn()
    for row, text, other in zip(sources.rows, sources.layouts, sources.others, strict=True):
        taken = layout_from_json(text).recombined
        assert (other is None) == (taken is None)
        if taken:
            second = LABELLED.ids.index(taken.other)
            assert second != row and other == (LABELLED.ids[second], LABELLED.groups[second])
    assert sum(o is not None for o in sources.others) > 20


def test_the_same_candidates_are_the_same_alone_and_again() -> None:
    first, again, alone = drawn(8), drawn(8), drawn(1)
    for name in ("pixels", "labels", "keep_in"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert np.array_equal(getattr(first, name)[:1], getattr(alone, name))
    assert first.layouts == again.layouts and first.layouts != drawn(8, seed=1).layouts
    assert all(layout_from_json(t).recombined is None for t in drawn(8, settings=LayoutSettings(recombine=0)).layouts)


def discs(*centres: tuple[float, float], hole: bool = False) -> np.ndarray:
    """Returns labels (96, 96): discs of class 1 at `centres` (x, y), class 2 inside the first if `hole`."""
    mask = np.zeros((96, 96), np.uint8)
    for x, y in centres:
        mask[np.hypot(X - x, Y - y) < 0.2] = 1
    if hole:
        mask[np.hypot(X - centres[0][0], Y - centres[0][1]) < 0.1] = 2
    return mask


def test_whether_a_second_object_is_possible_is_learnt_from_the_labels() -> None:
    one, two, nothing = discs((0, 0)), discs((-0.5, 0), (0.5, 0)), np.zeros((96, 96), np.uint8)
    crumb = one.copy()
    crumb[90, 90] = 1
    assert share_with_several(np.stack([one, two, two, nothing])) == pytest.approx(2 / 3)
    assert share_with_several(np.stack([one, crumb])) == 0 == share_with_several(np.stack([nothing]))
    heart = discs((0, 0), hole=True)
    broken = discs((0, 0), (0.6, 0), hole=True)  # one class in two parts is still one heart
    assert share_with_several(np.stack([heart, broken])) == 0
    for mode, share in (("add", 1), ("replace", 0), ("auto", 0)):
        assert learn_anatomy(LABELLED, LayoutSettings(recombine_mode=mode)).add_share == share


def test_a_heart_is_moved_as_a_whole() -> None:
    masks = np.stack([discs((0.1 * i, 0), hole=True) for i in range(4)])
    images = np.where(masks == 2, 220, np.where(masks == 1, 160, 60)).astype(np.uint8)[:, None]
    labelled = Arrays(images, masks, tuple("abcd"), tuple("abcd"), DataInfo(("bg", "wall", "room"), 1, 8, (0.0, 255.0)))
    sources = drawn(20, labelled=labelled)
    assert sum(o is not None for o in sources.others) > 10
    for labels, other in zip(sources.labels, sources.others, strict=True):
        assert ndimage.label(labels > 0)[1] == 1 and (labels == 2).any() and (labels == 1).any(), other


def test_pairs_of_another_appearance_are_not_mixed() -> None:
    images = LABELLED.images.copy()
    images[3:] = np.where(LABELLED.masks[3:, None] == 1, 230, 200)
    sources = drawn(40, labelled=dataclasses.replace(LABELLED, images=images))
    for row, other in zip(sources.rows, sources.others, strict=True):
        assert other is None or (row < 3) == (LABELLED.ids.index(other[0]) < 3)


def test_nothing_is_put_on_the_frame() -> None:
    thing, nothing = discs((0, 0)) > 0, np.zeros((96, 96), bool)
    assert fits(thing, taken=nothing, keep_in=nothing, gap_px=4)
    assert not fits(thing, taken=nothing, keep_in=X > 0.1, gap_px=4)
    assert not fits(nothing, taken=nothing, keep_in=nothing, gap_px=4)
    beside = np.zeros_like(nothing)
    right = np.nonzero(thing.any(0))[0].max()
    beside[48, right + 5] = True
    assert fits(thing, taken=beside, keep_in=nothing, gap_px=4)
    assert not fits(thing, taken=beside, keep_in=nothing, gap_px=5)


@pytest.mark.parametrize("seen_as", [1, IGNORE])
def test_the_rim_shows_nothing_that_is_mirrored_at_the_others_border(seen_as: int) -> None:
    mask = np.zeros((48, 48), np.uint8)
    mask[15:33, 6:14], mask[15:33, :3] = 1, seen_as  # near the border, and what is cut by it
    image = np.where(mask > 0, 230, 80).astype(np.uint8)[None]
    moved = dataclasses.replace(IDENTITY, shift_x=0.375, rotate_deg=5.0)
    taken = Recombination("b", "add", 2 if seen_as == 1 else 1, moved, gap_px=14)
    ground, nothing = np.full((1, 48, 48), 80, np.uint8), np.zeros((48, 48), np.uint8)
    pixels, labels = put(ground, nothing, nothing > 0, image=image, mask=mask, taken=taken)
    mirror = mirrored_in(mask, moved)
    assert (mirror & (ndimage.distance_transform_edt(labels != 1) <= 14)).sum() > 30, "the case must occur"
    assert (pixels[0][mirror] == 80).all() and (labels[mirror] == 0).all()
    assert (pixels[0][ndimage.binary_erosion(labels == 1)] > 200).all()


def test_a_filled_hole_continues_its_surroundings() -> None:
    hole = discs((0, 0)) > 0
    flat = np.where(hole, 250, 90).astype(np.uint8)[None]
    assert (fill(flat, hole, known=~hole) == 90).all()
    ramp = np.tile(np.arange(96, dtype=np.uint8), (96, 1))[None]
    assert np.abs(fill(ramp, hole, known=~hole).astype(int) - ramp).max() < 15
    assert np.array_equal(fill(ramp, hole, known=~hole)[:, ~hole], ramp[:, ~hole])


def tissue(level: float = 140, *, noise: float = 12) -> np.ndarray:
    """Returns a textured picture (96, 96) float."""
    return level + ndimage.gaussian_filter(RNG.standard_normal((96, 96)), 2) * 4 * noise


CORNERS = np.abs(X) + np.abs(Y) > 1.5


@pytest.mark.parametrize("level", [0, 70, 255])
@pytest.mark.parametrize("region", [CORNERS, X < -0.8, np.hypot(X, Y) > 0.95], ids=["corners", "margin", "round"])
def test_a_constant_border_is_found_through_compression_noise(level: int, region: np.ndarray) -> None:
    noisy = np.where(region, level, tissue()) + 2.5 * RNG.standard_normal((3, 96, 96))
    frame = detect_frame(noisy.clip(0, 255).astype(np.uint8))
    assert (frame & region).sum() / (frame | region).sum() > 0.85
    assert frame[region].mean() > 0.9


def test_burned_in_text_belongs_to_the_frame() -> None:
    image = np.where(X < -0.5, 0, tissue())
    image[40:44, 5:9] = 255
    assert detect_frame(image.astype(np.uint8)[None])[40:44, 5:9].all()


@pytest.mark.parametrize("kind", ["vignette", "plain", "flat", "speck", "ramp", "16 bit"])
def test_a_full_picture_has_no_frame(kind: str) -> None:
    picture = {"vignette": 200 * np.exp(-(X**2 + Y**2)) + tissue(10, noise=2), "plain": tissue(), "flat": 0 * X + 9,
               "speck": np.where((X < -0.9) & (Y < -0.9), 0, tissue()), "ramp": 120 + 100 * X,
               "16 bit": 200 * tissue()}[kind]
    dtype = np.uint16 if kind == "16 bit" else np.uint8
    assert not detect_frame(picture.clip(0, np.iinfo(dtype).max).astype(dtype)[None]).any()


def test_the_frame_is_never_foreground_nor_the_ground_that_cells_lie_on() -> None:
    image = np.where(CORNERS, 0, tissue()).astype(np.uint8)[None]
    mask = discs((-0.6, -0.6))
    keep = keep_in_of(image, mask)
    assert keep.any() and not keep[mask == 1].any()
    cells = discs((-0.5, 0), (0.5, 0))
    assert not keep_in_of(np.where(cells == 1, 200, 5).astype(np.uint8)[None], cells).any()


def test_the_frame_moves_with_the_picture_and_continues_outwards() -> None:
    image, mask = np.where(X < -0.8, 0, tissue()).astype(np.uint8)[None], discs((0, 0))
    moved = apply_layout(image, mask, Layout(dataclasses.replace(IDENTITY, shift_x=0.25), "frame"))
    edge = np.nonzero(keep_in_of(image, mask)[48])[0].max() + 24
    assert moved.keep_in[:, :edge + 1].all() and not moved.keep_in[:, edge + 1:].any()
    assert (moved.pixels[0][moved.keep_in] < 60).all(), "the frame's own level, not tissue mirrored into it"
    still = apply_layout(image, mask, Layout(IDENTITY, "none"))
    assert not still.keep_in.any() and np.array_equal(still.pixels, image)
