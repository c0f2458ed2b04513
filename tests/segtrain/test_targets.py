"""Targets: filtered pixels are ignored, never background; an inert threshold is an error."""

from __future__ import annotations

import pytest
import torch

from segtrain.targets import soft
from segtrain.targets.filters import argmax, confidence
from synth.core.checks import UserError


def logits_of(prob: list[list[float]]) -> torch.Tensor:
    """Returns logits (1, K, 1, W) whose softmax is `prob`, one list of K for each of W pixels."""
    return torch.tensor(prob).T.log()[None, :, None]


def test_soft_is_the_softmax_without_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = soft(logits)
    assert torch.equal(target.prob, logits.detach().softmax(1)) and not target.prob.requires_grad
    assert target.valid.all() and (target.weight == 1).all()


def test_a_filtered_pixel_is_invalid_and_keeps_its_class() -> None:
    target = confidence(argmax(soft(logits_of([[0.01, 0.99], [0.4, 0.6], [0.97, 0.03]]))), tau=0.95)
    assert target.hard.flatten().tolist() == [1, 1, 0]
    assert target.valid.flatten().tolist() == [True, False, True]
    assert float(target.stats["kept"]) == pytest.approx(2 / 3)


def test_filters_chain_and_never_revive_a_pixel() -> None:
    target = confidence(confidence(soft(logits_of([[0.2, 0.8], [0.05, 0.95]])), tau=0.9), tau=0.6)
    assert target.valid.flatten().tolist() == [False, True]


@pytest.mark.parametrize(("n_classes", "tau"), [(2, 0.5), (2, 0.3), (4, 0.25)])
def test_a_threshold_that_nothing_can_miss_is_refused(n_classes: int, tau: float) -> None:
    with pytest.raises(UserError, match="nothing would be filtered"):
        confidence(soft(torch.zeros(1, n_classes, 2, 2)), tau=tau)


def test_the_threshold_is_not_inert_on_calibrated_predictions() -> None:
    logits = 3 * torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert 0.02 < float(confidence(soft(logits), tau=0.95).stats["kept"]) < 0.98
