"""Networks: one call, shapes, seeded weights, helpful refusals."""

from __future__ import annotations

import pytest
import torch

from segtrain.models import build_model, check_size
from segtrain.settings import ModelSettings
from synth.core.checks import UserError

TINY = ModelSettings(name="tiny", channels=(8, 16, 24))
UNET = ModelSettings(name="unet", encoder="resnet18", channels=(4, 4, 8, 8, 8))


@pytest.mark.parametrize("settings", [TINY, UNET], ids=lambda s: s.name)
@pytest.mark.parametrize(("channels", "n_classes"), [(1, 2), (3, 4)])
def test_logits_have_the_images_size(settings: ModelSettings, channels: int, n_classes: int) -> None:
    net = build_model(settings.name, channels, n_classes, settings)
    assert net.eval()(torch.zeros(2, channels, 64, 32)).shape == (2, n_classes, 64, 32)


@pytest.mark.parametrize("settings", [TINY, UNET], ids=lambda s: s.name)
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
