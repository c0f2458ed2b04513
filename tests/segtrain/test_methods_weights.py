"""Methods that weigh pixels, images and labels: for each, what it would not do if its part were switched off."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from scenes import PAIRS, SETTINGS, disc, make_scene, rand, run, same, weights
from stages import stage
from torch import nn

from segtrain.heads import HEADS, Sizes
from segtrain.heads.dae import apply_damage, draw_damage
from segtrain.losses.boundary import CeBoundary, sobel_edges
from segtrain.losses.consistency import consistency_ce
from segtrain.method import load_method
from segtrain.models import Seen, Widths
from segtrain.recipe import SegmentRecipe
from segtrain.regularisers.dac import Dac, image_dac
from segtrain.regularisers.denoise import Denoise, denoising_loss
from segtrain.scene import Scene, Shown
from segtrain.streams import Streams
from segtrain.targets import from_labels, from_prob, soft
from segtrain.targets.weights import Anatomy, Calibrated, ConfidenceWeight, above_mean, deviation
from segtrain.transforms.warps import Stay
from synth.core.checks import IGNORE, UserError
from synth.core.space import labels_to_onehot

# Anatomy: an auto-encoder says which masks are plausible.

class Says(nn.Module):
    """An auto-encoder that always says the same mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.logits = 50 * labels_to_onehot(mask[None], 2)

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        """Returns the same logits (B, K, H, W) for all masks."""
        return self.logits.expand(masks.shape)


class Listens(nn.Module):
    """An auto-encoder that remembers what it is shown, and always answers the same."""

    def __init__(self, answer: torch.Tensor, shown: list[torch.Tensor]) -> None:
        super().__init__()
        self.answer, self.shown = answer, shown

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        """Returns the same logits (B, K, H, W) for all masks."""
        self.shown.append(masks)
        return self.answer


def test_anatomy_weighs_by_its_closed_form_and_gamma_zero_is_the_identity() -> None:
    scene, prob = make_scene(), torch.tensor([0.3, 0.7])[None, :, None, None].expand(2, 2, 16, 16)
    scene.heads = {"dae": Says(disc(16, 8, 8, 3))}
    target = Anatomy(gamma=2.0)(from_prob(prob), scene)
    expected = torch.where(disc(16, 8, 8, 3) == 1, math.exp(-2 * 0.3**2), math.exp(-2 * 0.7**2))
    assert torch.allclose(target.weight, expected.expand(2, 16, 16))
    assert torch.equal(Anatomy(gamma=0.0)(from_prob(prob), scene).weight, torch.ones(2, 16, 16))
    with pytest.raises(UserError, match="head other"):
        Anatomy(head="other")(from_prob(prob), scene)


def test_an_auto_encoder_trained_on_discs_mistrusts_a_speck() -> None:
    torch.manual_seed(0)
    head = HEADS["mask_dae"](width=8, levels=2)(Sizes(Widths(8, 16), 1, 2))
    optimizer, scene = torch.optim.Adam(head.parameters(), lr=1e-2), make_scene(8)
    scene.heads = {"dae": head}
    for step in range(120):
        masks = torch.stack([disc(16, 5 + (step + i) % 7, 5 + (step * 3 + i) % 7, 3) for i in range(8)])
        scene.supervised = dataclasses.replace(scene.supervised, labels=masks, seeds=tuple(range(step, step + 8)))
        loss = Denoise()(scene)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mask = disc(16, 8, 8, 3)
    mask[1, 14] = 1
    found = deviation(labels_to_onehot(mask[None], 2), head)[0]
    assert found[1, 14] > 0.5 > 5 * found[8, 8]


def test_the_auto_encoder_learns_in_the_first_phase_alone_and_the_unlabelled_come_after() -> None:
    recipe, logs = run("anatomy_dae", 2)  # progress 0 and 1/6 of a phase until 0.3
    before = [p.detach().clone() for p in weights(recipe, "head_dae")]
    untrained = SegmentRecipe(SETTINGS, load_method("anatomy_dae"), info=PAIRS.info, has_synthetic=False)
    fresh = weights(untrained, "head_dae")
    assert not same(before, fresh) and "loss_denoise" in logs[0] and "plausible" not in logs[0]
    batch = Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS).batches(3, 0, 1)
    logged = recipe.step(batch, 0.5)
    assert same(before, weights(recipe, "head_dae")) and "loss_denoise" not in logged
    assert 0 < float(logged["plausible"]) < 1


def test_the_noise_of_anatomy_dae_is_its_teachers() -> None:
    _, scene = stage("anatomy_dae", 0.5)
    (shown,) = scene.shown
    assert torch.equal(shown.images, scene.clean)
    assert not torch.allclose(shown.target.prob, soft(scene.said("teacher").logits).prob)


def test_damage_is_drawn_row_by_row_and_none_is_the_identity() -> None:
    scene, labels = make_scene(4), torch.stack([disc(16, 4 + i, 8, 3) for i in range(4)])
    whole = draw_damage(scene.supervised_rngs("d"), (16, 16), n_classes=2, p=0.2, n_swaps=3)
    alone = draw_damage(scene.supervised_rngs("d")[2:3], (16, 16), n_classes=2, p=0.2, n_swaps=3)
    assert torch.equal(apply_damage(labels, whole, side=4)[2:3], apply_damage(labels[2:3], alone, side=4))
    assert 0.12 < whole.wrong.float().mean() < 0.28
    none = draw_damage(scene.supervised_rngs("d"), (16, 16), n_classes=2, p=0.0, n_swaps=0)
    assert torch.equal(apply_damage(labels, none, side=4), labels)
    corners = torch.tensor([[[0.0, 0.0, 0.99, 0.99]]]).expand(4, 1, 4)
    numbers = torch.arange(256).view(1, 16, 16).expand(4, 16, 16)
    swapped = apply_damage(numbers, dataclasses.replace(none, swaps=corners), side=4)
    assert torch.equal(swapped[:, :4, :4], numbers[:, 12:, 12:]), "patches change places"
    assert torch.equal(swapped[:, 12:, 12:], numbers[:, :4, :4])
    assert torch.equal(swapped.flatten(1).sort().values, numbers.flatten(1))


def test_the_auto_encoder_is_shown_damaged_masks_and_asked_for_whole_ones() -> None:
    scene, shown = make_scene(2), []
    truth = labels_to_onehot(scene.supervised.labels, 2)
    answer = nn.Parameter(100 * truth)
    scene.heads = {"dae": Listens(answer, shown)}
    assert float(Denoise()(scene).detach()) == pytest.approx(0, abs=1e-5)
    changed = (shown[0] != truth).any(1).float().mean()
    assert 0.05 < changed < 0.4
    Denoise(p=0.0, swaps=0)(scene)
    assert torch.equal(shown[1], truth)


def test_the_auto_encoder_cannot_copy_and_passes_over_what_is_not_known() -> None:
    labels = torch.stack([disc(16, 8, 8, 4)])
    sure = 100 * labels_to_onehot(labels, 2)
    assert float(denoising_loss(sure, labels)) == pytest.approx(0, abs=1e-5)
    hidden = labels.clone()
    hidden[0, :4] = IGNORE
    logits = rand(1, 2, 16, 16).requires_grad_()
    denoising_loss(logits, hidden).backward()
    assert (logits.grad[0, :, :4] == 0).all() and (logits.grad[0, :, 4:] != 0).any()
    head = HEADS["mask_dae"]()(Sizes(Widths(8, 16), 1, 3))
    assert head(labels_to_onehot(torch.zeros(2, 20, 28, dtype=torch.long), 3)).shape == (2, 3, 20, 28)


# CW-BASS: the threshold that labelled images set.

def sure_of(labels: torch.Tensor, right: float, certainty: float) -> torch.Tensor:
    """Returns logits (B, 2, H, W) that say `labels` with one certainty, and the other class for the rest of `right`."""
    wrong = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) >= right
    said = torch.where(wrong, 1 - labels, labels)
    return (certainty * labels_to_onehot(said, 2) + (1 - certainty) * (1 - labels_to_onehot(said, 2))).log()


def calibrated_scene(monkeypatch: pytest.MonkeyPatch, right: float) -> Scene:
    """Returns a scene whose labeller is very sure of the held-out images and right in a share `right` of the pixels."""
    scene = make_scene()
    scene.batch["calibration_images"] = scene.batch["images"]
    scene.batch["calibration_labels"] = scene.batch["labels"]
    logits = sure_of(scene.batch["labels"], right, 0.99)
    monkeypatch.setattr(type(scene.topology), "teacher", lambda *_, **__: Seen(logits, logits, logits))
    return scene


@pytest.mark.parametrize(("right", "strict"), [(1.0, True), (0.8, False)])
def test_the_gate_is_strict_only_for_a_labeller_that_is_right(monkeypatch: pytest.MonkeyPatch, right: float,
                                                              strict: bool) -> None:  # noqa: FBT001
    scene = calibrated_scene(monkeypatch, right)
    weak = soft(0.7 * rand(3, 2, 16, 16))  # never as sure as tau
    target = Calibrated(tau=0.95)(weak, scene)
    assert bool(scene.stats["strict"]) is strict
    assert float(scene.stats["pi"]) == pytest.approx(right, abs=0.05)
    certain = weak.prob.amax(1)
    assert torch.equal(target.valid, certain >= (0.95 if strict else certain.mean((1, 2), keepdim=True)))


def test_neither_threshold_of_the_gate_is_inert_as_the_published_one_is() -> None:
    target = soft(2 * rand(4, 2, 16, 16))
    published = (0.6 * torch.sigmoid(0.5 * (target.prob.amax(1).mean() - 0.5))).clamp(0.3, 0.8)
    assert (target.prob.amax(1) >= published).all(), "two classes: it keeps every pixel"
    kept = [float(above_mean(target, tau=0.95).stats["kept"])]
    kept += [float(above_mean(soft(scale * rand(4, 2, 16, 16)), tau=0.95).stats["kept"]) for scale in (0.1, 8.0)]
    assert all(0.02 < share < 0.98 for share in kept)
    sure = torch.full((1, 4, 4), 0.999)
    sure[0, 0], sure[0, 1, 0] = 0.96, 0.9
    kept_of = above_mean(from_prob(torch.stack([sure, 1 - sure], dim=1)), tau=0.95).valid
    assert torch.equal(kept_of, sure >= 0.95), "where the mean is above tau, tau decides"
    rows = above_mean(dataclasses.replace(target, prob=target.prob[1:2], weight=target.weight[1:2],
                                          valid=target.valid[1:2]), tau=0.95)
    assert torch.equal(rows.valid, above_mean(target, tau=0.95).valid[1:2])


def test_pi_is_counted_once_a_step_remembered_and_refused_without_held_out_images(
        monkeypatch: pytest.MonkeyPatch) -> None:
    scene = calibrated_scene(monkeypatch, 1.0)
    for _ in range(3):
        Calibrated()(soft(rand(3, 2, 16, 16)), scene)
    assert scene.memory["calibration"].tolist() == [3 * 256, 3 * 256]
    later = dataclasses.replace(scene, stats={})
    Calibrated(decay=0.5)(soft(rand(3, 2, 16, 16)), later)
    assert later.memory["calibration"].tolist() == [1.5 * 3 * 256] * 2
    with pytest.raises(UserError, match="held_out_share"):
        Calibrated()(soft(rand(3, 2, 16, 16)), make_scene())
    with pytest.raises(UserError, match="nothing would be filtered"):
        Calibrated(tau=0.5)(soft(rand(3, 2, 16, 16)), None)


def test_a_labeller_that_is_never_sure_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = calibrated_scene(monkeypatch, 1.0)
    unsure = torch.zeros(3, 2, 16, 16)
    monkeypatch.setattr(type(scene.topology), "teacher", lambda *_, **__: Seen(unsure, unsure, unsure))
    Calibrated()(soft(rand(3, 2, 16, 16)), scene)
    assert float(scene.stats["pi"]) == 0 and not scene.stats["strict"]


def test_confidence_weighs_and_the_boundary_term_is_the_mean_on_the_outline() -> None:
    target = soft(rand(2, 2, 8, 8))
    assert torch.equal(ConfidenceWeight(gamma=2.0)(target, None).weight, target.prob.amax(1) ** 2)
    assert torch.equal(ConfidenceWeight(gamma=0.0)(target, None).weight, target.weight)
    hard, logits = from_labels(disc(8, 4, 4, 2)[None], 2), rand(1, 2, 8, 8)
    edges = sobel_edges(hard.hard, hard.valid, 2)
    inner, outer = disc(8, 4, 4, 1)[None] == 1, disc(8, 4, 4, 4)[None] == 0
    assert edges.any() and not edges[outer].any() and not edges[0, 4, 4] and inner.any()
    losses = nn.functional.cross_entropy(logits, hard.hard, reduction="none")
    assert torch.allclose(CeBoundary(boundary=0.5)(logits, hard), losses.mean() + 0.5 * losses[edges].mean())
    assert torch.equal(CeBoundary(boundary=0.0)(logits, hard), consistency_ce(logits, hard, norm="all"))
    few = dataclasses.replace(hard, valid=hard.hard == 1)
    assert torch.allclose(CeBoundary(boundary=0.0)(logits, few), losses[hard.hard == 1].mean()), "of those that passed"


def test_what_is_not_valid_makes_no_outline() -> None:
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[0, :, :4] = False
    assert not sobel_edges(torch.zeros(1, 8, 8, dtype=torch.long), valid, 2).any()
    assert not sobel_edges((~valid).long(), valid, 2).any()


# AdaWAC: each image's own balance.

def dac_scene(n: int = 3) -> Scene:
    """Returns a scene whose first image has hard labels, and whose last disagrees with its second view."""
    scene, logits = make_scene(n), 6 * labels_to_onehot(make_scene(n).supervised.labels, 2) - 3
    logits[0] *= -1
    coarse = torch.zeros(n, 4, 2, 2)
    other = coarse.clone()
    other[-1] = 2.0
    own = logits.requires_grad_()
    scene.seen = {"student": Seen(own, own, coarse)}
    scene.shown = [Shown("student", scene.supervised.images, Stay(), from_labels(scene.supervised.labels, 2),
                         seen=Seen(own, own, other))]
    return scene


def test_dac_moves_each_weight_to_what_is_hard_in_that_image_and_stays_on_the_simplex() -> None:
    scene = dac_scene()
    expected = torch.zeros(3)
    logits = scene.seen["student"].logits
    ce = nn.functional.cross_entropy(logits, scene.supervised.labels, reduction="none").mean((1, 2))
    for _ in range(2):
        loss = Dac(eta=0.5)(scene)
        expected = expected + 0.5 * (ce - torch.tensor([0.0, 0.0, 8.0]))  # twice the mean of 2^2
    w = scene.memory["odds"].sigmoid().detach()
    assert torch.allclose(w, expected.sigmoid().detach())
    assert w[0] > 0.9 and w[2] < 0.05
    assert torch.allclose(loss, (w * ce + (1 - w) * torch.tensor([0.0, 0.0, 8.0])).mean())
    loss.backward()
    grad = scene.seen["student"].logits.grad.abs().sum((1, 2, 3))
    assert grad[2] < 0.05 * grad[1], "whose augmentations disagree hardly learns from its labels"


def test_dac_remembers_by_row_and_grows() -> None:
    scene = dac_scene()
    scene.memory["odds"] = torch.tensor([5.0, -5.0])
    scene.supervised = dataclasses.replace(scene.supervised, rows=torch.tensor([4, 0, 4]))
    Dac(eta=0.0)(scene)
    assert scene.memory["odds"].tolist() == [5.0, -5.0, 0.0, 0.0, 0.0]
    assert torch.allclose(scene.stats["w_ce"], torch.tensor([0.0, 5.0, 0.0]).sigmoid().mean()), "each row its own"
    Dac(eta=1.0)(scene)
    assert scene.memory["odds"][1] == -5.0 and scene.memory["odds"][4] != 0 and scene.memory["odds"][2] == 0
    one, two = rand(3, 4, 2, 2), rand(3, 4, 2, 2, seed=1)
    assert torch.equal(image_dac(one, two)[1:2], image_dac(one[1:2], two[1:2])) and not image_dac(one, one).any()


def test_adawac_keeps_its_weights_in_what_is_saved() -> None:
    recipe, logs = run("adawac", 2, unlabelled=False)
    assert recipe.extra_state()["memory"]["odds"].shape == (6,) and 0 < float(logs[-1]["w_ce"]) < 1
