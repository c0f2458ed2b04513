"""Views: images and targets move together; zero strength is the identity; rows do not depend on their batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scenes import make_scene, perturbed

from segtrain.settings import AugmentSettings, GeometrySettings, IntensitySettings
from segtrain.targets import Target, soft
from segtrain.targets.filters import argmax
from segtrain.transforms.geometry import Geometry, draw_geometry, geometry_grid, sample_labels, sample_smooth
from segtrain.transforms.intensity import apply_intensity, draw_intensity
from segtrain.transforms.warps import ChainWarp
from segtrain.views import PERTURBATIONS, augment_pairs, weak
from segtrain.views.basic import CutMix, Move, Strong, draw_boxes
from synth.core.checks import IGNORE
from synth.core.rng import sample_rng

STILL = GeometrySettings(flip_horizontal=False, p=0)
ALL_HIT = IntensitySettings(p_colour=1, p_blur=1, p_noise=1, p_low_res=1)


def rngs(n: int, name: str = "t") -> list[torch.Generator]:
    """Returns one generator for each of n rows."""
    return [sample_rng(7, name, i) for i in range(n)]


def coded(n: int = 4, size: int = 16) -> tuple[torch.Tensor, Target]:
    """Returns images (B, 1, S, S) of blocks whose grey value is their class over 8, and the target of those classes."""
    blocks = torch.randint(0, 9, (n, size // 4, size // 4), generator=torch.Generator().manual_seed(5))
    hard = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    valid = hard != 3
    target = Target(torch.nn.functional.one_hot(hard, 9).movedim(-1, 1).float(), hard, hard / 8.0, valid)
    return hard[:, None] / 8.0, target


def smooth(n: int = 3, channels: int = 3, size: int = 16) -> torch.Tensor:
    """Returns random unit images (B, C, S, S)."""
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(6)) * 1.8 - 0.9


def test_cutmix_moves_image_and_target_alike() -> None:
    images, target = coded()
    mixed, warp = CutMix(p=1)(images, rngs(4), None)
    moved = warp.apply(target)
    assert not torch.equal(mixed, images)
    assert torch.equal(mixed[:, 0], moved.hard / 8.0)
    assert torch.equal(moved.weight, moved.hard / 8.0)
    assert torch.equal(moved.prob.argmax(1), moved.hard)
    assert torch.equal(moved.valid, moved.hard != 3)


def test_cutmix_pastes_the_next_row_and_nothing_else() -> None:
    images, _ = coded()
    mixed, warp = CutMix(p=1)(images, rngs(4), None)
    assert torch.equal(mixed, torch.where(warp.pasted[:, None], images.roll(-1, 0), images))


def test_boxes_keep_their_area_and_can_be_off() -> None:
    edges = draw_boxes(rngs(400), CutMix(p=1, area_low=0.1, area_high=0.2, aspect=2)).edges
    area = (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
    assert 0.1 - 1e-9 <= float(area.min()) and float(area.max()) <= 0.2 + 1e-9
    assert 0 <= float(edges.min()) and float(edges.max()) <= 1
    assert not draw_boxes(rngs(50), CutMix(p=0)).edges.any()


def test_a_geometric_view_moves_the_target_by_the_same_grid() -> None:
    images, target = coded(size=32)
    moved, warp = Move(flip_vertical=True, p=1)(images, rngs(4), None)
    after = warp.apply(target)
    # Bilinear and nearest agree wherever the four neighbours have one value.
    flat = torch.isclose(warp.move(images.square(), nearest=False), moved.square(), atol=1e-5)[:, 0] & after.valid
    assert flat.float().mean() > 0.3
    assert torch.allclose(moved[:, 0][flat], after.hard[flat] / 8.0, atol=1e-4)


def test_no_strength_changes_nothing() -> None:
    images, labels = smooth(), torch.randint(0, 3, (3, 16, 16), generator=torch.Generator().manual_seed(1))
    off = IntensitySettings(p_colour=0, p_blur=0, p_noise=0, p_low_res=0)
    same, same_labels = augment_pairs(images, labels, rngs(3), AugmentSettings(geometry=STILL, intensity=off))
    assert torch.allclose(same, images, atol=1e-5)
    assert torch.equal(same_labels, labels)


def test_a_flip_is_exactly_a_flip() -> None:
    images = smooth(1)
    flipped = Geometry(torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]))
    grid = geometry_grid(flipped, (16, 16), images.device)
    assert torch.allclose(sample_smooth(images, grid), images.flip(3), atol=1e-5)


def test_flips_follow_the_anatomy() -> None:
    theta = draw_geometry(rngs(40), GeometrySettings(flip_horizontal=True, p=0)).theta
    assert set(theta[:, 0, 0].tolist()) == {-1.0, 1.0} and (theta[:, 1, 1] == 1).all()


def test_beyond_the_border_the_image_is_mirrored_and_the_label_ignored() -> None:
    images, labels = smooth(1), torch.ones(1, 16, 16, dtype=torch.long)
    grid = geometry_grid(Geometry(torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]])), (16, 16), images.device)
    assert torch.equal(sample_labels(labels, grid)[0, 0], torch.tensor([1] * 12 + [IGNORE] * 4))
    assert torch.allclose(sample_smooth(images, grid)[..., 12:], images[..., 12:].flip(3), atol=1e-5)


def test_elastic_displacement_moves_by_pixels() -> None:
    params = Geometry(torch.eye(2, 3)[None], torch.stack([torch.full((4, 4), 2.0), torch.zeros(4, 4)])[None])
    images = smooth(1)
    grid = geometry_grid(params, (16, 16), images.device)
    assert torch.allclose(sample_smooth(images, grid)[..., :14], images[..., 2:], atol=1e-4)
    assert draw_geometry(rngs(2), GeometrySettings(elastic_px=1.5)).displacement.shape == (2, 2, 4, 4)


@pytest.mark.parametrize("name", sorted(PERTURBATIONS))
def test_every_perturbation_repeats_itself_and_moves_a_target_of_any_kind(name: str) -> None:
    scene = make_scene()
    once, warp = perturbed(name, scene)
    again, _ = perturbed(name, make_scene())
    assert torch.equal(once, again) and once.shape == scene.clean.shape
    assert float(once.abs().max()) <= 1 or name == "noise"
    target = soft(scene.said("student").logits)
    moved = warp.apply(argmax(target))
    assert moved.prob.shape == target.prob.shape and moved.hard.shape == moved.valid.shape == moved.weight.shape
    assert torch.allclose(moved.prob.sum(1)[moved.valid], torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_does_not_depend_on_its_batch(channels: int) -> None:
    images = smooth(channels=channels)
    together = apply_intensity(images, draw_intensity(rngs(3), ALL_HIT))
    alone = apply_intensity(images[1:2], draw_intensity(rngs(3)[1:2], ALL_HIT))
    assert torch.allclose(together[1:2], alone, atol=1e-6)
    assert not torch.allclose(together, images, atol=1e-2)
    moved, _ = weak(images, rngs(3), GeometrySettings())
    assert torch.allclose(moved[1:2], weak(images[1:2], rngs(3)[1:2], GeometrySettings())[0], atol=1e-6)


def test_colours_keep_grey_grey_and_blur_keeps_the_mean() -> None:
    grey = smooth(channels=1).expand(-1, 3, -1, -1)
    colour = IntensitySettings(p_colour=1, hue=0.3, saturation=0.9, p_blur=0, p_noise=0, p_low_res=0)
    after = apply_intensity(grey, draw_intensity(rngs(3), colour))
    assert torch.allclose(after[:, 0], after[:, 1], atol=2e-3)
    blurred = IntensitySettings(p_colour=0, p_blur=1, blur_px=2, p_noise=0, p_low_res=0)
    flat = torch.full((3, 1, 16, 16), 0.25)
    assert torch.allclose(apply_intensity(flat, draw_intensity(rngs(3), blurred)), flat, atol=1e-5)
    assert apply_intensity(smooth(), draw_intensity(rngs(3), blurred)).std() < smooth().std()


def test_strong_never_moves_pixels() -> None:
    images, target = coded()
    _, warp = Strong()(images, rngs(4), None)
    moved = ChainWarp((warp, warp)).apply(target)
    for field in dataclasses.fields(Target):
        assert getattr(moved, field.name) is getattr(target, field.name)
