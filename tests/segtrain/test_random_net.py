"""Random networks as an augmentation: appearance changes, shapes and labels stay, rows know nothing of each other."""

from __future__ import annotations

import torch
from scenes import named_rngs, random_images

from segtrain.settings import AugmentSettings, GeometrySettings, IntensitySettings, SegmentSettings
from segtrain.transforms.random_net import RandomNetSettings, apply_random_net, draw_random_net
from segtrain.views import augment_pairs

ALWAYS = RandomNetSettings(p=1.0)


def test_each_row_is_what_it_is_alone_and_differs_from_the_others() -> None:
    x = random_images(6, channels=3)
    whole = apply_random_net(x, draw_random_net(named_rngs(6), ALWAYS, channels=3))
    assert whole.shape == x.shape and whole.abs().max() <= 1
    for i in range(6):
        alone = apply_random_net(x[i:i + 1], draw_random_net(named_rngs(6)[i:i + 1], ALWAYS, channels=3))
        assert torch.allclose(whole[i:i + 1], alone, atol=1e-5)
    same = x[:1].expand(6, -1, -1, -1)
    made = apply_random_net(same, draw_random_net(named_rngs(6), ALWAYS, channels=3))
    assert all((made[i] - made[j]).abs().mean() > 0.02 for i in range(6) for j in range(i))


def test_one_layer_of_single_pixels_is_the_linear_map_that_was_drawn() -> None:
    x, settings = random_images(40), RandomNetSettings(p=1.0, layers=1, p_negative=0.5)
    drawn = draw_random_net(named_rngs(40), settings, channels=1)
    pointwise = [i for i in range(40) if drawn.weights[0][i].count_nonzero() == 1]
    assert 8 < len(pointwise) < 32, "half of the kernels look at one pixel"
    made = apply_random_net(x, drawn)
    turned = (drawn.high < drawn.low).double().mean()
    assert 0.25 < turned < 0.75
    for i in pointwise:
        z = (x[i] - x[i].mean()) / x[i].std(correction=0)
        y = drawn.weights[0][i, 0, 0, 1, 1] * z + drawn.shifts[0][i, 0]
        mixed = drawn.share[i] * y * z.norm() / y.norm() + (1 - drawn.share[i]) * z
        mixed = (mixed - mixed.mean()) / mixed.std(correction=0)
        expected = (drawn.low[i] + drawn.high[i]) / 2 + mixed * (drawn.high[i] - drawn.low[i]) / 4
        assert torch.allclose(made[i], expected.clamp(-1, 1), atol=1e-4)


def test_shares_and_ranges_are_those_asked_for() -> None:
    n = 3000
    drawn = draw_random_net(named_rngs(n), RandomNetSettings(p=0.3, least_range=0.5), channels=1)
    assert abs((drawn.share > 0).double().mean() - 0.3) < 0.03
    filled = (drawn.high - drawn.low) / 2
    assert 0.5 <= filled.min() < 0.51 and 0.99 < filled.max() <= 1
    assert drawn.low.min() >= -1 and drawn.high.max() <= 1 + 1e-6 and drawn.low.std() > 0.1
    x = random_images(200)
    untouched = drawn.share[:200] == 0
    some = draw_random_net(named_rngs(200), RandomNetSettings(p=0.3), channels=1)
    assert torch.equal(apply_random_net(x, some)[untouched], x[untouched])


def test_a_flat_image_stays_as_it_is() -> None:
    flat = torch.full((2, 1, 8, 8), 0.25)
    assert torch.equal(apply_random_net(flat, draw_random_net(named_rngs(2), ALWAYS, channels=1)), flat)


def test_pairs_change_their_looks_and_keep_their_labels() -> None:
    still = GeometrySettings(flip_horizontal=False, p=0)
    grey = IntensitySettings(p_colour=0, p_blur=0, p_noise=0, p_low_res=0)
    x, labels = random_images(), torch.randint(0, 2, (3, 16, 16))
    changed, after = augment_pairs(x, labels, named_rngs(3), AugmentSettings(
        geometry=still, intensity=grey, random_net=ALWAYS))
    assert (changed - x).abs().mean() > 0.05 and torch.equal(after, labels)


def test_runs_without_it_are_what_they_were_before_it_was_there() -> None:
    plain, with_it = SegmentSettings(), SegmentSettings(augment=AugmentSettings(random_net=ALWAYS))
    seen = [s.identity(synthetic=False, unlabelled=False)["augment"] for s in (plain, with_it)]
    assert "random_net" not in seen[0] and "random_net" in seen[1]
