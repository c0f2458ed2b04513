"""Losses against closed forms; pixels that do not count have no gradient at all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from segtrain.losses import LOSSES
from segtrain.losses.consistency import consistency_ce
from segtrain.losses.deep import between_kinds
from segtrain.losses.supervised import EPS, masked_ce, soft_dice_loss, supervised
from segtrain.targets import Target, soft
from segtrain.targets.filters import argmax
from synth.core.checks import IGNORE, UserError


def random_logits(seed: int = 0) -> torch.Tensor:
    """Returns logits (2, 3, 4, 4) that want a gradient."""
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def hard_target(valid: torch.Tensor, seed: int = 1) -> Target:
    """Returns hard pseudo-labels for 3 classes at `valid` (2, 4, 4)."""
    return replace(argmax(soft(random_logits(seed))), valid=valid)


def test_ignored_pixels_have_exactly_no_gradient() -> None:
    logits, labels = random_logits(), torch.ones(2, 4, 4, dtype=torch.long)
    labels[0, :2] = IGNORE
    supervised(logits, labels).backward()
    assert (logits.grad[0, :, :2] == 0).all()
    assert (logits.grad[0, :, 2:] != 0).all()


@pytest.mark.parametrize("norm", ["all", "valid"])
def test_invalid_pixels_have_exactly_no_gradient_and_are_not_background(norm: str) -> None:
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1, 0] = False
    logits, target = random_logits(), hard_target(valid)
    consistency_ce(logits, target, norm=norm).backward()
    assert (logits.grad[1, :, 0] == 0).all()
    assert (logits.grad[0] != 0).all()
    relabelled = replace(target, hard=torch.where(valid, target.hard, (target.hard + 1) % 3))
    assert torch.equal(consistency_ce(logits, relabelled, norm=norm), consistency_ce(logits, target, norm=norm))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_slot_ignores_what_the_filter_dropped(name: str) -> None:
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1, 0] = False
    logits, target, loss = random_logits(), hard_target(valid), LOSSES[name]()
    loss(logits, target).backward()
    assert (logits.grad[1, :, 0] == 0).all() and (logits.grad[0] != 0).any()
    unweighted = replace(target, weight=valid.float())
    assert torch.equal(loss(logits, unweighted), loss(logits, target))
    nothing = loss(logits, hard_target(torch.zeros_like(valid)))
    assert float(nothing.detach()) == pytest.approx(0, abs=1e-6)


def test_a_class_that_no_pseudo_label_shows_is_not_pushed_down() -> None:
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    logits = torch.zeros(1, 3, 2, 2)
    prob, n = 1 / 3, 4
    shown = 1 - (2 * n * prob + EPS) / (n * prob**2 + n + EPS)
    assert float(soft_dice_loss(logits, labels, present_only=True)) == pytest.approx(shown)
    absent = 1 - EPS / (n * prob**2 + EPS)
    assert float(soft_dice_loss(logits, labels)) == pytest.approx((shown + 2 * absent) / 3)
    target = replace(hard_target(torch.ones(2, 4, 4, dtype=torch.bool)), hard=torch.zeros(2, 4, 4, dtype=torch.long))
    sure = torch.zeros(2, 3, 4, 4)
    sure[:, 0] = 9.0
    assert float(LOSSES["dice"]()(sure, target)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", ["ce", "dice"])
def test_losses_of_hard_labels_say_what_is_missing(name: str) -> None:
    with pytest.raises(UserError, match="argmax"):
        LOSSES[name]()(random_logits(), soft(random_logits()))


def test_dice_weighs_pixels() -> None:
    labels = torch.tensor([[[0, 1], [1, 1]]])
    logits = torch.zeros(1, 2, 2, 2)
    weight = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    # p = 1/2: overlap sum w y / 2, squares (sum w) / 4 + sum w y.
    expected = 1 - sum((n + EPS) / (1 + n + EPS) for n in (1, 3)) / 2
    assert float(soft_dice_loss(logits, labels, weight=weight)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["ce", "dice"])
def test_the_two_normalisations_differ_by_the_share_of_valid_pixels(name: str) -> None:
    valid = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.4
    logits, target = random_logits(), hard_target(valid)
    ratio = LOSSES[name](norm="all")(logits, target) / LOSSES[name](norm="valid")(logits, target)
    assert 0 < float(valid.float().mean()) < 1
    assert float(ratio.detach()) == pytest.approx(float(valid.float().mean()))


def test_weights_scale_the_consistency_loss() -> None:
    logits, target = random_logits(), hard_target(torch.ones(2, 4, 4, dtype=torch.bool))
    half = replace(target, weight=target.weight / 2)
    assert torch.allclose(consistency_ce(logits, half, norm="all") * 2, consistency_ce(logits, target, norm="all"))


def test_nothing_to_count_gives_zero_not_nan() -> None:
    logits = random_logits()
    none = torch.full((2, 4, 4), IGNORE)
    loss = supervised(logits, none) + consistency_ce(logits, hard_target(none == 0), norm="valid")
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert (logits.grad == 0).all()


def test_closed_forms_at_even_odds() -> None:
    logits, labels = torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 1], [1, 1]]])
    assert float(masked_ce(logits, labels)) == pytest.approx(math.log(2))
    # p = 1/2 everywhere: overlap n_k/2, squares 4/4 + n_k.
    expected = 1 - sum((2 * n / 2 + EPS) / (1 + n + EPS) for n in (1, 3)) / 2
    assert float(soft_dice_loss(logits, labels)) == pytest.approx(expected)


def test_a_certain_right_answer_costs_nothing() -> None:
    labels = torch.randint(0, 3, (1, 4, 4), generator=torch.Generator().manual_seed(3))
    logits = 100 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert float(supervised(logits, labels)) == pytest.approx(0, abs=1e-6)


def test_cross_entropy_needs_hard_labels() -> None:
    with pytest.raises(UserError, match="argmax"):
        consistency_ce(random_logits(), soft(random_logits()), norm="all")


def test_synthetic_pairs_do_not_raise_the_loss_of_labels_above_the_others() -> None:
    real, made = torch.tensor(0.6), torch.tensor(0.2)
    both = torch.tensor([False, True, False, False])
    assert between_kinds(real, made, both, w_syn=1.0) == pytest.approx(0.4)
    assert between_kinds(real, made, both, w_syn=0.25) == pytest.approx((0.6 + 0.25 * 0.2) / 1.25)
    assert between_kinds(real, torch.tensor(0.0), torch.zeros(4, dtype=torch.bool), w_syn=0.25) == real
    assert between_kinds(torch.tensor(0.0), made, torch.ones(4, dtype=torch.bool), w_syn=0.25) == pytest.approx(0.2)
    same = torch.tensor(0.5)  # as good on both: as large as without synthetic pairs
    assert between_kinds(same, same, both, w_syn=3.0) == pytest.approx(0.5)
