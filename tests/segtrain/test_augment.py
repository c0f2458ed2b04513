"""The augmentation list: shares of their own, curves, and nothing at all."""

from __future__ import annotations

import pytest
import torch
from scenes import named_rngs, random_images

from segtrain.settings import AugmentSettings, GeometrySettings, IntensitySettings
from segtrain.transforms.geometry import draw_geometry
from segtrain.transforms.intensity import apply_intensity, draw_intensity
from segtrain.views import augment_pairs, weak


def test_each_kind_has_a_share_of_its_own() -> None:
    n, base = 4000, {"p_colour": 0.0, "p_blur": 0, "p_noise": 0, "p_low_res": 0}
    drawn = draw_intensity(named_rngs(n), IntensitySettings(**base, p_brightness=0.15, p_contrast=0.3, p_gamma=0.45,
                                                      p_invert=0.6))
    hits = torch.stack([drawn.gain != 1, drawn.contrast != 1, drawn.gamma != 1, drawn.inverted != 1]).double()
    assert torch.allclose(hits.mean(1), torch.tensor([0.15, 0.3, 0.45, 0.6], dtype=torch.float64), atol=0.03)
    assert torch.corrcoef(hits).fill_diagonal_(0).abs().max() < 0.06, "each is drawn by itself"
    moved = draw_geometry(named_rngs(n), GeometrySettings(
        flip_horizontal=False, p=0, p_rotate=0.2, p_zoom=0.4, p_shift=0.6, elastic_px=1.0, p_elastic=0.3))
    scale = moved.theta[:, :, :2].det().abs().sqrt()
    hits = torch.stack([moved.theta[:, 0, 1] != 0, (scale - 1).abs() > 1e-6, moved.theta[:, 0, 2] != 0,
                        moved.displacement.abs().sum((1, 2, 3)) > 0]).double()
    assert torch.allclose(hits.mean(1), torch.tensor([0.2, 0.4, 0.6, 0.3], dtype=torch.float64), atol=0.03)
    assert torch.corrcoef(hits).fill_diagonal_(0).abs().max() < 0.06


def test_shares_left_out_draw_what_was_always_drawn() -> None:
    one, other = (draw_geometry(named_rngs(5), s) for s in (GeometrySettings(), GeometrySettings(p_elastic=0.5)))
    assert torch.equal(one.theta, other.theta)
    own = draw_geometry(named_rngs(5), GeometrySettings(p_zoom=0.0))
    still = (own.theta[:, :, :2].det().abs() - 1).abs() < 1e-6
    assert still.all() and torch.equal(own.theta[:, 0, 2], one.theta[:, 0, 2])


def only(**changes: object) -> IntensitySettings:
    """Returns settings that change nothing but what `changes` says."""
    return IntensitySettings(**{"p_colour": 0.0, "p_blur": 0, "p_noise": 0, "p_low_res": 0, **changes})


def test_an_inverted_curve_is_a_curve_of_the_inverted_image() -> None:
    x, drawn = random_images(), draw_intensity(named_rngs(3), only(p_invert=1.0, gamma=0.5))
    assert (drawn.inverted != 1).all() and (drawn.gamma == 1).all()
    unit = (x + 1) / 2
    expected = 1 - (1 - unit) ** drawn.inverted.float()[:, None, None, None]
    assert torch.allclose(apply_intensity(x, drawn), expected * 2 - 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["p_gamma", "p_invert"])
def test_curves_may_leave_mean_and_deviation_as_they_were(kind: str) -> None:
    x = random_images(channels=3) * 0.5
    for retain in (True, False):
        changed = apply_intensity(x, draw_intensity(named_rngs(3), only(**{kind: 1.0}, gamma=1.0, retain_stats=retain)))
        assert (changed - x).abs().max() > 0.02
        alike = [torch.allclose(f(changed, dim=(2, 3)), f(x, dim=(2, 3)), atol=1e-3) for f in (torch.mean, torch.std)]
        assert all(alike) == retain


def test_rows_with_and_without_a_curve_do_not_depend_on_each_other() -> None:
    x, settings = random_images(8), only(p_gamma=0.5, p_invert=0.5, retain_stats=True)
    drawn = draw_intensity(named_rngs(8), settings)
    assert 0 < int((drawn.inverted != 1).sum()) < 8
    whole = apply_intensity(x, drawn)
    for i in range(8):
        alone = draw_intensity(named_rngs(8)[i:i + 1], settings)
        assert torch.equal(whole[i:i + 1], apply_intensity(x[i:i + 1], alone))


def test_no_augmentation_is_the_identity_bit_for_bit() -> None:
    still = AugmentSettings(geometry=GeometrySettings(flip_horizontal=False, p=0), intensity=only())
    assert still.geometry.is_still and still.intensity.is_still
    x, labels = random_images(), torch.randint(0, 2, (3, 16, 16))
    found = augment_pairs(x, labels, named_rngs(3), still)
    assert all(torch.equal(a, b) for a, b in zip(found, (x, labels), strict=True))
    assert torch.equal(weak(x, named_rngs(3), still.geometry)[0], x)
    for change in ({"p_rotate": 0.1}, {"flip_vertical": True}, {"elastic_px": 1.0}, {"p": 0.5}):
        assert not GeometrySettings(**{"flip_horizontal": False, "p": 0, **change}).is_still
    assert GeometrySettings(flip_horizontal=False, p=0.7, p_rotate=0, p_zoom=0, p_shift=0).is_still
    assert not any(only(**{name: 0.1}).is_still for name in ("p_colour", "p_gamma", "p_invert", "p_blur", "p_noise"))

