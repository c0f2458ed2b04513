"""The discriminator: closed forms of its losses, its weight, and its patches."""

from __future__ import annotations

import pytest
import torch

from synth.core.adversarial import hinge_loss
from synth.diffusion.discriminator import MAX_WEIGHT, adaptive_weight, build_discriminator


def test_the_hinge_loss_has_its_closed_form() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    # Real: 0, 1/2, 2, mean 5/6; fake: 0, 1, 2, mean 1; half of the sum.
    assert float(hinge_loss(real, fake)) == pytest.approx(0.5 * (2.5 / 3 + 1))
    assert float(hinge_loss(torch.ones(4), -torch.ones(4))) == 0
    assert float(hinge_loss(torch.zeros(4), torch.zeros(4))) == 1


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    # Decoder y = w h; losses 3 w h and h^2 w^2 / 2, so the gradients in w are 3 h and w h^2.
    w, h = torch.tensor([2.0], requires_grad=True), 5.0
    first = torch.autograd.grad((3 * w * h).sum(), w)[0]
    second = torch.autograd.grad((0.5 * (w * h).square()).sum(), w)[0]
    assert float(adaptive_weight(first, second)) == pytest.approx(15 / 50)
    assert float(adaptive_weight(first, torch.zeros(1))) == MAX_WEIGHT
    assert float(adaptive_weight(torch.zeros(1), second)) == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [16, 64])
def test_one_logit_for_each_patch_and_each_image_alone(channels: int, size: int) -> None:
    net = build_discriminator(channels=channels, seed=0)
    images = torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(0))
    logits = net(images)
    assert logits.shape == (4, 1, size // 4 - 2, size // 4 - 2)
    assert torch.allclose(net(images[1:2]), logits[1:2], atol=1e-5)


def test_building_is_repeatable_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    a, b, c = (build_discriminator(channels=1, seed=s).layers[0].weight for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(a, b) and not torch.equal(a, c)
