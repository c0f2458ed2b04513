"""Several plausible masks: distances and divergence in closed form, moved borders, and the spread that is asked for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import PAIRS, SETTINGS, changed, disc, run, weights
from torch.distributions import Normal, kl_divergence

from segtrain.labels.shifted import Shifts, ShiftSettings, apply_shifts, draw_shifts
from segtrain.losses.clouds import cloud_distance, gaussian_kl, masks_as_points
from segtrain.method import load_method
from segtrain.models import build_model
from segtrain.plausible import generalised_energy, sample_masks, uncertainty, write_plausible
from segtrain.segmenter import Segmenter, SegmenterConfig
from segtrain.settings import ModelSettings
from synth.core.checks import IGNORE, UserError
from synth.core.rng import sample_rng
from synth.core.taught import Taught
from synth.formats import load_pairs

MODEL = ModelSettings(name="prob_tiny", channels=(8, 16), latent=3, n_samples=4)


def cloud(*points: float) -> torch.Tensor:
    """Returns points on a line as a cloud (1, N, 1)."""
    return torch.tensor(points, dtype=torch.float64)[None, :, None]


def segmenter(spread: float = 30.0) -> Segmenter:
    """Returns an untrained probabilistic segmenter whose latent numbers matter."""
    net = build_model("prob_tiny", 1, 2, MODEL)
    with torch.no_grad():
        net.heads[0].of_numbers.weight.mul_(spread)
    return Segmenter(net, SegmenterConfig(model=MODEL, info=PAIRS.info, size=32))


def test_without_a_blur_the_cloud_distance_is_the_energy_distance() -> None:
    a, b = cloud(0.0, 1.0), cloud(3.0)
    assert float(cloud_distance(a, b, blur=math.inf)) == pytest.approx(2 * 2.5 - 0.5 - 0)
    assert float(cloud_distance(a, a, blur=math.inf)) == pytest.approx(0, abs=1e-6)


def test_with_a_small_blur_it_is_the_mean_distance_to_the_nearest_both_ways() -> None:
    a, b = cloud(0.0, 1.0), cloud(3.0, 1.2)
    nearest = (1.2 + 0.2) / 2 + (2.0 + 0.2) / 2
    assert float(cloud_distance(a, b, blur=1e-3)) == pytest.approx(nearest, abs=5e-3)
    middle = float(cloud_distance(a, b, blur=0.3))
    assert middle > 0 and middle == pytest.approx(float(cloud_distance(b, a, blur=0.3)), rel=1e-5)


def test_a_cloud_that_is_all_one_point_is_far_from_one_that_is_spread() -> None:
    raters = cloud(0.0, 1.0)
    for blur in (0.1, math.inf):
        narrow, spread = (float(cloud_distance(c, raters, blur=blur)) for c in (cloud(0.5, 0.5), cloud(0.1, 0.9)))
        assert spread < 0.5 * narrow


def test_masks_that_agree_nowhere_are_one_apart_and_ignored_pixels_do_not_count() -> None:
    onehot = torch.zeros(1, 2, 2, 4, 4)
    onehot[0, 0, 0], onehot[0, 1, 1] = 1, 1
    counted = torch.ones(1, 4, 4)
    counted[:, 2:] = 0
    for count in (torch.ones(1, 4, 4), counted):
        points = masks_as_points(onehot, count)
        assert float((points[0, 0] - points[0, 1]).norm()) == pytest.approx(1)
    half = onehot.clone()
    half[0, 1, :, 2:] = half[0, 0, :, 2:]
    assert float((masks_as_points(half, 1 - counted)[0]).diff(dim=0).norm()) == pytest.approx(0)


def test_the_divergence_is_torchs() -> None:
    rng = torch.Generator().manual_seed(0)
    m, s, n, t = (torch.randn(5, 3, generator=rng) for _ in range(4))
    expected = kl_divergence(Normal(m, s.exp()), Normal(n, t.exp())).sum(-1)
    assert torch.allclose(gaussian_kl(m, s, n, t), expected, rtol=1e-4)


def test_a_border_moves_by_its_shift_and_not_at_all_without_one() -> None:
    labels = disc(32, 16, 16, 8)[None].long()
    labels[0, :2] = IGNORE
    n = torch.zeros(1, 3, 2)
    n[0, 1, 1], n[0, 2, 1] = 2 / 32, -2 / 32
    found = apply_shifts(labels, Shifts(n, torch.zeros(1, 3, 2, 4, 4)))
    assert found.shape == (1, 4, 32, 32) and torch.equal(found[0, 0], labels[0]) and torch.equal(found[0, 1], labels[0])
    assert all((mask[:2] == IGNORE).all() and (mask[2:] != IGNORE).all() for mask in found[0])
    radii = [math.sqrt(float((mask == 1).sum()) / math.pi) for mask in found[0]]
    assert radii[2] - radii[0] == pytest.approx(2, abs=0.35) and radii[0] - radii[3] == pytest.approx(2, abs=0.35)


def test_no_class_vanishes_and_none_appears() -> None:
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[0, 4:7, 4:7], labels[0, 20:28, 20:28] = 1, 2
    settings = ShiftSettings(n=9, shift=0.2, wave=0.1)
    found = apply_shifts(labels, draw_shifts([sample_rng(0, i) for i in range(2)], 4, settings))
    assert found.shape == (2, 9, 32, 32)
    assert all(set(mask.unique().tolist()) == {0, 1, 2} for mask in found[0]) and (found[1] == 0).all()
    assert len({mask.numpy().tobytes() for mask in found[0]}) > 4
    alone = apply_shifts(labels[:1], draw_shifts([sample_rng(0, 0)], 4, settings))
    assert torch.equal(alone[0], found[0]), "an image's masks do not depend on who else is in the batch"


def test_the_energy_of_masks_in_closed_form() -> None:
    a, b = torch.zeros(4, 4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.long)
    a[0], b[0, :2] = 1, 1  # IoU 2 / 4
    assert generalised_energy(torch.stack([a]), torch.stack([b]), n_classes=2) == pytest.approx(2 * 0.5)
    assert generalised_energy(torch.stack([a, b]), torch.stack([b, a]), n_classes=2) == pytest.approx(0)
    assert generalised_energy(torch.stack([a, a]), torch.stack([a, b]), n_classes=2) == pytest.approx(
        2 * 0.25 - 0 - 0.25)
    empty = torch.zeros(1, 4, 4, dtype=torch.long)
    assert generalised_energy(empty, empty, n_classes=2) == 0


def test_drawn_masks_differ_and_depend_on_image_and_generator_alone() -> None:
    model, images = segmenter(), torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def draw(rows: slice) -> torch.Tensor:
        rngs = [sample_rng(0, i) for i in range(3)]
        return sample_masks(model, images[rows], n=6, rngs=rngs[rows])

    prob = draw(slice(None))
    assert prob.shape == (3, 6, 2, 32, 32) and torch.allclose(prob.sum(2), torch.ones(3, 6, 32, 32), atol=1e-5)
    assert torch.allclose(draw(slice(1, 2))[0], prob[1], atol=1e-5) and float(prob[0].std(dim=0).max()) > 0.05
    assert (uncertainty(prob) >= 0).all() and float(uncertainty(prob).max()) <= math.log(2) + 1e-6
    certain = torch.zeros(1, 3, 2, 4, 4)
    certain[:, :, 1] = 1
    assert float(uncertainty(certain).abs().max()) == 0


def test_masks_of_tiles_are_drawn_at_the_scale_that_was_learnt() -> None:
    tiles = segmenter()
    tiles.config = tiles.config.model_copy(update={"tiles": True})
    fixed = tiles.net.heads[0].noise
    image = torch.rand(2, 1, 48, 80, generator=torch.Generator().manual_seed(2))

    def of(images: torch.Tensor) -> torch.Tensor:
        return sample_masks(tiles, images, n=3, rngs=[sample_rng(0, "x", i) for i in range(len(images))])

    drawn = of(image)
    assert drawn.shape == (2, 3, 2, 48, 80) and torch.allclose(drawn.sum(2), torch.ones(()), atol=1e-5)
    assert torch.equal(drawn[:1], of(image[:1])), "batch == alone"
    assert (drawn[:, 0] - drawn[:, 1]).abs().max() > 0.01
    # What lies far from a pixel, in tiles that do not show it, says nothing about it.
    other = image.clone()
    other[..., 64:] = 0
    assert torch.equal(of(other)[..., :16], drawn[..., :16]) and not torch.equal(of(other)[..., 64:], drawn[..., 64:])
    with torch.no_grad():
        tiles.net.heads[0].noise = sample_noise(3, fixed.shape[1])
        expected = tiles.predict(image[:1])
    assert torch.allclose(drawn[:1].mean(1), expected, atol=1e-5), "their mean is its probability"


def sample_noise(n: int, latent: int) -> torch.Tensor:
    """Returns the numbers behind the first image's masks, (n, L)."""
    return torch.randn((n, latent), generator=sample_rng(0, "x", 0))


def test_the_prediction_is_the_mean_of_the_fixed_draws() -> None:
    model, images = segmenter(), torch.rand(2, 1, 32, 32)
    head = model.net.heads[0]
    hidden = model.net.decoders[0](model.net.encoder(images))
    mean = head.draw(hidden, head.noise[None]).softmax(2).mean(1)
    assert torch.allclose(model.predict(images), mean, atol=1e-5) and head.noise.mean(0).abs().max() < 1e-6


def test_plausible_masks_are_a_set_of_pairs_of_the_same_groups(tmp_path: Path) -> None:
    for n in (0, -1):
        with pytest.raises(UserError, match=f"samples={n}: each image gets one mask or more"):
            write_plausible(segmenter(), PAIRS, out=tmp_path / "made", n=n)
    model, known = segmenter(), Taught(frozenset(), frozenset({"hash"}))
    model.taught = known
    write_plausible(model, PAIRS, out=tmp_path / "made", n=2)
    assert load_pairs(tmp_path / "made").taught == known
    found = load_pairs(tmp_path / "made")
    assert len(found) == 2 * len(PAIRS) and set(found.groups) == set(PAIRS.groups)
    assert dict(zip(found.ids, found.groups, strict=True)) == {
        f"{i.id}-{k}": i.group for i in PAIRS.items for k in range(2)}
    tiny = SETTINGS.model
    plain = Segmenter(build_model("tiny", 1, 2, tiny), SegmenterConfig(model=tiny, info=PAIRS.info, size=32))
    with pytest.raises(UserError, match="method=pulaski"):
        sample_masks(plain, torch.zeros(1, 1, 32, 32), n=2, rngs=[sample_rng(0)])


@pytest.mark.parametrize("blur", [0.1, math.inf])
def test_what_the_distance_asks_for_is_spread_where_a_pixel_loss_asks_for_the_mean(blur: float) -> None:
    raters = cloud(0.0, 1.0)
    ends = []
    for by_distance in (True, False):
        drawn = (0.5 + 0.02 * torch.linspace(-1, 1, 8, dtype=torch.float64))[None, :, None].requires_grad_()
        optimizer = torch.optim.Adam([drawn], lr=0.02)
        for _ in range(150):
            by_pixel = (drawn - raters.mT).square().mean()
            loss = cloud_distance(drawn, raters, blur=blur).sum() if by_distance else by_pixel
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(drawn.detach())
    assert float(ends[0].std()) > 0.3 and float(ends[1].std()) < 0.02
    assert abs(float(ends[0].mean()) - 0.5) < 0.05 and abs(float(ends[1].mean()) - 0.5) < 0.02


def test_training_brings_both_clouds_to_the_labels() -> None:
    settings = SETTINGS.model_copy(update={"optim": SETTINGS.optim.model_copy(update={"lr": 1e-2}),
                                           "loop": SETTINGS.loop.model_copy(update={"steps": 60})})
    _, logs = run("pulaski", 60, unlabelled=False, settings=settings)
    assert float(logs[-1]["distance"]) < 0.6 * float(logs[0]["distance"]) and float(logs[-1]["kl"]) > 0


def test_several_raters_are_taken_at_their_word() -> None:
    method = load_method("pulaski_raters")
    assert method.needs("observers") and not load_method("pulaski").needs("observers")
    first, second = (run(m, 2, unlabelled=False)[0] for m in (method, "pulaski"))
    assert not all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_the_method_wants_a_network_that_draws() -> None:
    with pytest.raises(UserError, match="prob_unet"):
        run(changed("pulaski", topology="single"), 1, unlabelled=False)
    assert np.isfinite(float(run("pulaski", 1, unlabelled=False)[1][0]["kl"]))
