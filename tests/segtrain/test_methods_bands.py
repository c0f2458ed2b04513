"""DSAIF, CFC-Net and TraCoCo: who is shown what, who labels whom, and that targets follow."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from phantom import make_phantom
from scenes import SETTINGS, changed, make_scene, run
from watch import started, watch, with_logits

from segtrain.losses import LOSSES
from segtrain.losses.crc import crc
from segtrain.method import load_method
from segtrain.models import Seen
from segtrain.regularisers import REGULARISERS
from segtrain.scene import Scene, Shown
from segtrain.targets import Target, from_prob
from segtrain.transforms.bands import Band, low_pass
from segtrain.transforms.warps import ChainWarp, MixWarp, Stay, Warp, take_pixels
from segtrain.views.bands import mean_entropy, patch_warp
from segtrain.views.crops import CropPair, ShiftWarp
from synth.core.checks import UserError
from synth.core.rng import sample_rng

MINE = ("dsaif", "cfc_net", "tracoco", "contrastive_gl", "u2pl", "c3s3", "rail")


def coded(n: int = 3, size: int = 16) -> tuple[torch.Tensor, Target]:
    """Returns images (B, 1, S, S) whose grey value is their class over 8, pixel by pixel, and the target of those."""
    hard = torch.randint(0, 9, (n, size, size), generator=torch.Generator().manual_seed(5))
    prob = torch.nn.functional.one_hot(hard, 9).movedim(-1, 1).float()
    return hard[:, None] / 8.0, Target(prob, hard, hard / 8.0, hard != 3)


def follows(images: torch.Tensor, target: Target) -> bool:
    """Returns whether each valid pixel of a moved target says the colour of its image."""
    grey = images[:, 0]
    exact = torch.equal(grey, target.hard / 8.0) and torch.equal(grey, target.weight)
    return exact and torch.equal(target.prob.argmax(1), target.hard) and not (target.valid & (target.hard == 3)).any()


@pytest.mark.parametrize("name", MINE)
def test_every_method_trains_on_three_classes_and_colours(name: str) -> None:
    recipe, batches = started(name, pairs=make_phantom(4, size=32, n_groups=2, channels=3, n_classes=3))
    logs = [recipe.step(batches(i), i / 6) for i in (0, 1, 4)]
    assert all(torch.isfinite(value).all() for line in logs for value in line.values())


# DSAIF


def test_dsaif_shows_each_branch_its_own_tree_and_labels_from_the_others() -> None:
    recipe, batches = started("dsaif")
    assert recipe.method.inputs() == ("tree_max", "tree_min")

    def look(scene: Scene) -> None:
        low, high = scene.inputs["tree_max"], scene.inputs["tree_min"]
        assert not torch.equal(low, high) and (low <= high + 1e-5).all()
        a, b = scene.shown
        assert torch.equal(a.images, low) and torch.equal(b.images, high)
        for view, teacher, its_form in ((a, "b", high), (b, "a", low)):
            assert torch.equal(view.target.hard, scene.topology.teacher(its_form, teacher).logits.argmax(1))
            other_form = low if its_form is high else high
            assert not torch.equal(view.target.prob, scene.topology.teacher(other_form, teacher).logits.softmax(1))

    watch(recipe, batches, look, n_steps=2)
    assert len(recipe.predictor().members) == 2


def test_a_source_of_a_form_that_was_not_made_is_refused() -> None:
    scene = make_scene()
    with pytest.raises(UserError, match="no such form"):
        scene.said_of_form("student", form="tree_max")
    view = {"input": None, "source": {"own_form": {"input": "tree_min"}}, "target": ["argmax"], "loss": "ce"}
    assert changed("dsaif", views=[view]).inputs() == ("tree_min",)


# CFC-Net


def test_the_two_bands_add_up_and_a_flat_image_has_no_high_one() -> None:
    images = make_scene(channels=3).clean
    low, high = Band(keep="low", sigma=0.1).of(images), Band(keep="high", sigma=0.1).of(images)
    assert torch.allclose(low + high, images, atol=1e-6) and low.std() < images.std()
    assert torch.allclose(Band(keep="low", sigma=0.1).of(images[1:2]), low[1:2], atol=1e-6)
    flat = torch.full((1, 1, 16, 16), 0.7)
    assert torch.allclose(Band(keep="high").of(flat), torch.zeros(()), atol=1e-6), "mirrored, not dark, borders"
    assert torch.equal(Band(keep="low", sigma=0).of(images), images)
    assert not Band(keep="high", sigma=0).of(images).any()


def test_the_low_band_of_a_wave_is_its_gaussian_transfer() -> None:
    x = torch.arange(64) + 0.0
    wave = torch.cos(2 * math.pi * x / 16).expand(1, 1, 64, 64)
    passed = low_pass(wave, sigma_px=2.0)[0, 0, 32, 16:48]
    expected = wave[0, 0, 32, 16:48] * math.exp(-0.5 * (2 * math.pi / 16 * 2) ** 2)
    assert torch.allclose(passed, expected, atol=5e-3)


def test_ucf_mix_replaces_the_most_uncertain_patches_by_the_most_certain_and_cuts_targets_alike() -> None:
    entropy = torch.full((2, 16, 16), 0.5)
    entropy[0, 4:8, 8:12], entropy[1, :4, :4], entropy[1, 12:, :4] = 0.9, 0.9, 0.8
    entropy[0, :4, 12:], entropy[1, 8:12, 8:12] = 0.1, 0.2
    images, target = coded(2)
    warp = patch_warp(entropy, n_cells=4, n_patches=2)
    mixed = warp.move(images, nearest=True)
    assert torch.equal(mixed[0, :, 4:8, 8:12], images[0, :, :4, 12:]), "the most certain of the whole batch"
    assert torch.equal(mixed[1, :, :4, :4], images[0, :, :4, 12:])
    assert torch.equal(mixed[1, :, 12:, :4], images[1, :, 8:12, 8:12])
    assert int((warp.index[1] != torch.arange(256, 512).reshape(16, 16)).sum()) == 32, "two patches, no more"
    assert follows(mixed, warp.apply(target))
    assert torch.equal(patch_warp(entropy, n_cells=4, n_patches=0).move(images, nearest=True), images)
    odd = torch.rand(1, 21, 13, generator=torch.Generator().manual_seed(0))
    assert patch_warp(odd, n_cells=16, n_patches=2).index.shape == (1, 21, 13)


def test_uncertain_is_what_the_two_say_together() -> None:
    sure = 50 * torch.tensor([1.0, 0.0])[None, :, None, None]
    assert float(mean_entropy([sure, sure])) == pytest.approx(0, abs=1e-6)
    assert float(mean_entropy([sure, sure.flip(1)])) == pytest.approx(math.log(2)), "together they are not"


def test_cfc_net_keeps_each_student_to_its_band_and_crosses_the_labels() -> None:
    recipe, batches = started("cfc_net")
    bands = {keep: Band(keep=keep) for keep in ("low", "high")}

    def look(scene: Scene) -> None:
        for view, keep in zip(scene.shown[:2], ("low", "high"), strict=True):
            assert torch.equal(view.images, bands[keep].of(scene.supervised.images)) and view.branch == keep
        for view, keep in zip(scene.shown[2:], ("low", "high") * 2, strict=True):
            assert view.branch == keep
            assert torch.equal(view.images, view.warp.move(bands[keep].of(scene.clean), nearest=True))
            assert not torch.equal(view.images, bands[keep].of(scene.clean)), "patches were exchanged"
        cross = {"low": "high", "high": "low"}
        for view in scene.shown[2:4]:
            said = scene.topology.teacher(scene.clean, "teacher").logits.argmax(1)
            assert torch.equal(view.target.hard, view.warp.move(said, nearest=True)), "full band, full-band teacher"
        for view in scene.shown[4:]:
            other = cross[view.branch]
            said = scene.topology.teacher(bands[other].of(scene.clean), other).logits.argmax(1)
            assert torch.equal(view.target.hard, view.warp.move(said, nearest=True))

    watch(recipe, batches, look, n_steps=2)
    assert recipe.predictor() is recipe.averages["teacher"].net, "the full-band teacher predicts"


# TraCoCo


def windows(n: int = 3, size: int = 16, shift: float = 0.3) -> tuple[torch.Tensor, Target, torch.Tensor, ShiftWarp]:
    """Returns coded images and target, what windows on them show, and the warp."""
    images, target = coded(n, size)
    shown, warp = CropPair(shift=shift)(images, [sample_rng(1, i) for i in range(n)], None)
    return images, target, shown, warp


def test_a_window_moves_image_and_target_alike_and_knows_what_it_made_up() -> None:
    images, target, shown, warp = windows()
    moved = warp.apply(target)
    assert follows(shown, moved) and warp.shift.any(dim=1).all()
    for i, (dy, dx) in enumerate(warp.shift.tolist()):
        y, x = torch.meshgrid(torch.arange(16) + dy, torch.arange(16) + dx, indexing="ij")
        inside = (y >= 0) & (y < 16) & (x >= 0) & (x < 16)
        assert torch.equal(warp.known(torch.ones(3, 16, 16, dtype=torch.bool))[i], inside)
        assert torch.equal(shown[i, 0][inside], images[i, 0, y[inside], x[inside]])


class OneWay(Stay):
    """A move that says no way back of its own."""

    back = Warp.back


def test_the_way_back_returns_every_pixel_that_the_window_showed() -> None:
    images, _, shown, warp = windows()
    back, there = warp.back(shown, torch.ones(3, 16, 16, dtype=torch.bool))
    assert torch.equal(back[:, 0][there], images[:, 0][there]) and there.any() and not there.all()
    share = 1 - warp.shift.abs() / 16
    assert torch.allclose(there.float().mean((1, 2)), share.prod(1))
    pasted = torch.zeros(3, 16, 16, dtype=torch.bool)
    pasted[:, 4:8, 4:8] = True
    chain = ChainWarp((warp, MixWarp(pasted, torch.tensor([1, 2, 0]))))
    back, known = chain.back(chain.move(images, nearest=True), torch.ones_like(pasted))
    assert torch.equal(back[:, 0][known], images[:, 0][known]) and 0 < int((there & ~known).sum()) <= 48
    with pytest.raises(UserError, match="no way back"):
        OneWay().back(images, there)


def test_windows_can_be_still_and_do_not_depend_on_their_batch() -> None:
    images, _, shown, _ = windows()
    still, warp = CropPair(shift=0)(images, [sample_rng(1, i) for i in range(3)], None)
    assert torch.equal(still, images) and warp.known(images[:, 0] >= 0).all()
    alone, _ = CropPair(shift=0.3)(images[1:2], [sample_rng(1, 1)], None)
    assert torch.equal(alone, shown[1:2])
    index = torch.arange(256).reshape(1, 16, 16).expand(3, -1, -1)
    assert torch.equal(take_pixels(images, index), images)


def one(prob: list[float]) -> torch.Tensor:
    """Returns one pixel (1, K, 1, 1) of these probabilities."""
    return torch.tensor(prob)[None, :, None, None]


@pytest.mark.parametrize(("said", "expected"), [
    # Sure of class 0, class 2 absent: .8 * -log .5 - log(1 - .2).
    ([0.8, 0.15, 0.05], -0.8 * math.log(0.5) - math.log(0.8)),
    # Unsure, and nothing below .1: teaches nothing at all.
    ([0.4, 0.35, 0.25], 0.0),
    # Sure enough, nothing absent: positive evidence alone.
    ([0.7, 0.15, 0.15], -0.7 * math.log(0.5)),
    # Unsure, class 2 absent: negative evidence alone.
    ([0.5, 0.45, 0.05], -math.log(0.8)),
])
def test_confident_evidence_is_its_closed_form(said: list[float], expected: float) -> None:
    logits = one([0.5, 0.3, 0.2]).log().requires_grad_()
    loss = LOSSES["crc"]()(logits, from_prob(one(said)))
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert bool(logits.grad.any()) == (expected != 0)


def test_evidence_stays_finite_and_an_inert_threshold_is_refused() -> None:
    logits = one([300.0, -300.0]).requires_grad_()
    loss = crc(logits, from_prob(one([0.0, 1.0])), positive=0.65, negative=0.1, weight=1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1200) and torch.isfinite(logits.grad).all()
    with pytest.raises(UserError, match="nothing would be filtered"):
        crc(logits, from_prob(one([0.5, 0.5])), positive=0.5, negative=0.1, weight=1.0)


def scene_of_two_windows(logits: torch.Tensor) -> tuple[Scene, list[ShiftWarp]]:
    """Returns a scene whose two views are windows in which a perfect network says the same `logits` (B, K, H, W)."""
    scene = make_scene()
    seen = Seen(logits, logits, logits)
    target = from_prob(logits.softmax(1))
    warps = [CropPair(shift=0.3)(scene.clean, scene.rngs("crop", i), scene)[1] for i in range(2)]
    blank = Shown("student", scene.clean, Stay(), target, None, seen)
    scene.shown = [with_logits(blank, warp.move(logits, nearest=True), warp) for warp in warps]
    return scene, warps


def test_translation_consistency_compares_the_same_tissue() -> None:
    logits = 3 * torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(2))
    scene, warps = scene_of_two_windows(logits)
    term = REGULARISERS["overlap_kl"](sharpness=0.0)
    assert float(term(scene)) == pytest.approx(0, abs=1e-6), "moved with its content, nothing disagrees"
    scene.shown = [replace(view, warp=Stay()) for view in scene.shown]
    assert float(term(scene)) > 1, "at the same places of two windows, other tissue"
    own = scene_of_two_windows(logits)[0]
    vague = REGULARISERS["overlap_kl"](sharpness=0.1)(own)
    both = warps[0].back(logits, torch.ones(3, 16, 16) > 0)[1] & warps[1].back(logits, torch.ones(3, 16, 16) > 0)[1]
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
    assert float(vague) == pytest.approx(0.1 * float(entropy[both].mean()), rel=1e-4)


def test_beyond_the_overlap_nothing_is_pulled_and_no_overlap_is_no_loss() -> None:
    scene, warps = scene_of_two_windows(torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(3)))
    free = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(4)).requires_grad_()
    scene.shown[0] = with_logits(scene.shown[0], free)
    REGULARISERS["overlap_kl"]()(scene).backward()
    assert (free.grad[~warps[0].known(torch.ones(3, 16, 16) > 0)[:, None].expand_as(free)] == 0).all()
    assert free.grad.any()
    nowhere = MixWarp(torch.ones(3, 16, 16, dtype=torch.bool), torch.tensor([1, 2, 0]))
    scene.shown[0] = replace(scene.shown[0], warp=nowhere)
    assert float(REGULARISERS["overlap_kl"]()(scene).detach()) == 0


def test_tracoco_labels_across_and_shows_two_different_windows() -> None:
    recipe, batches = started("tracoco")

    def look(scene: Scene) -> None:
        a, b, *others = scene.shown
        assert (a.branch, b.branch) == ("a", "b") and not torch.equal(a.images, b.images)
        assert [view.branch for view in others] == ["a", "b"] and not torch.equal(a.images, others[0].images)
        for view, other in ((a, "b"), (b, "a")):
            said = scene.topology.teacher(scene.clean, other).logits.softmax(1)
            assert torch.allclose(view.target.prob, view.warp.move(said, nearest=False), atol=1e-6)
        assert not a.target.valid.all()

    watch(recipe, batches, look)
    assert [term.call.views for term in recipe.phases[0].terms] == [(0, 2), (1, 3)], "each network with itself"
    _, logs = run(load_method("tracoco"), 6, settings=SETTINGS)
    assert float(logs[-1]["loss_overlap_kl"]) > 0
