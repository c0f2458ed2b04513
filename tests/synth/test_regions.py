"""Masks on the latent grid, margins, and how kept and painted are blended."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synth.diffusion.regions import blend_alpha, draw_margins, grow_cells, keep_to_latent
from synth.generator import kept_pixels


def random_masks(n: int, side: int, *, share: float) -> torch.Tensor:
    """Returns random keep masks (n, side, side) bool, single pixels included."""
    return torch.rand(n, side, side, generator=torch.Generator().manual_seed(3)) < share


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [0.002, 0.05, 0.5])
def test_no_foreground_pixel_is_lost_on_the_latent_grid(factor: int, share: float) -> None:
    keep = random_masks(20, 32, share=share)
    for margin in (0, 1, 2):
        latent = grow_cells(keep_to_latent(keep, factor=factor), [margin] * 20)
        assert latent.shape == (20, 1, 32 // factor, 32 // factor) and latent.dtype == torch.bool
        back = F.interpolate(latent.float(), scale_factor=factor, mode="nearest")[:, 0] > 0
        assert (back | ~keep).all()


def test_the_keep_mask_grows_by_whole_cells() -> None:
    keep = torch.zeros(1, 32, 32, dtype=torch.bool)
    keep[0, 13, 18] = True
    for margin in (0, 1, 2):
        latent = grow_cells(keep_to_latent(keep, factor=4), [margin])[0, 0]
        rows, columns = latent.nonzero().unbind(1)
        assert latent.sum() == (2 * margin + 1) ** 2
        assert (rows.min(), rows.max()) == (3 - margin, 3 + margin)
        assert (columns.min(), columns.max()) == (4 - margin, 4 + margin)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
def test_the_blend_is_one_on_the_foreground_and_zero_beyond_its_width(width: int) -> None:
    keep = torch.zeros(1, 48, 48, dtype=torch.bool)
    keep[0, 20:27, 18:30] = True
    alpha = blend_alpha(keep, width_px=width)
    assert alpha.shape == (1, 1, 48, 48) and alpha.min() >= 0 and alpha.max() == 1
    assert (alpha[0, 0][keep[0]] == 1).all()
    far = F.max_pool2d(keep[None].float(), 2 * width + 1, stride=1, padding=width)[0, 0] == 0
    assert (alpha[0, 0][far] == 0).all()
    across = alpha[0, 0, 23, 29:].diff()
    assert (across <= 1e-6).all(), "falls off on the way out"
    if width >= 4:
        assert across.abs().max() < 0.75, "a step, not a transition"


@pytest.mark.parametrize("width", [2, 3, 4, 6, 8, 16])
def test_no_foreground_pixel_has_less_than_all_the_weight(width: int) -> None:
    keep = F.max_pool2d(random_masks(20, 48, share=0.02)[:, None].float(), 7, stride=1, padding=3)[:, 0] > 0
    alpha = blend_alpha(keep, width_px=width)[:, 0]
    assert (alpha[keep] == 1).all() and alpha.max() == 1


def test_an_empty_and_a_full_mask_blend_to_nothing_and_to_everything() -> None:
    assert (blend_alpha(torch.zeros(1, 16, 16, dtype=torch.bool), width_px=4) == 0).all()
    assert (blend_alpha(torch.ones(1, 16, 16, dtype=torch.bool), width_px=4) == 1).all()


def test_margins_are_drawn_for_each_pair_within_their_bounds() -> None:
    margins = draw_margins(range(300), (1, 3))
    assert set(margins) == {1, 2, 3} and min(margins.count(k) for k in (1, 2, 3)) > 60
    assert draw_margins(range(300), (1, 3)) == margins and set(draw_margins(range(9), (2, 2))) == {2}


def test_kept_pixels_by_job() -> None:
    labels = torch.zeros(1, 9, 9, dtype=torch.long)
    labels[0, 4, 4], labels[0, 0, 0] = 2, 255
    assert kept_pixels(labels, mode="surroundings", ring_px=2).sum() == 1
    assert kept_pixels(labels, mode="layout", ring_px=2).sum() == 0
    around = kept_pixels(labels, mode="object", ring_px=2)
    assert around.sum() == 81 - 25 and not around[0, 2:7, 2:7].any()
