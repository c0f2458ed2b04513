"""Methods of sparse, noisy, several or stacked labels: for each, what it would not do if its part were switched off."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from phantom import make_phantom
from scenes import PAIRS, SETTINGS, changed, disc, extras_of, make_scene, rand, run, same
from torch import nn

from segtrain.heads import HEADS, Sizes
from segtrain.labels import LABELS
from segtrain.labels.affinity import Affinity, affinities, noisy_pixels, quality, ranks
from segtrain.labels.observers import MeanLabels, Sample, shares, vote
from segtrain.losses import SUPERVISED
from segtrain.losses.supervised import masked_ce, soft_dice_loss
from segtrain.method import load_method
from segtrain.models import Seen, Widths
from segtrain.recipe import SegmentRecipe
from segtrain.regularisers.adversarial import Adversarial, least_squares
from segtrain.scene import Scene
from segtrain.streams import Streams
from segtrain.targets import soft
from synth.core.checks import IGNORE, UserError
from synth.core.space import labels_to_onehot

METHODS = ("anatomy_dae", "cw_bass", "adawac", "mgd", "geot_2d", "external", "scribble", "noisy_labels", "observers",
           "mip")


@pytest.mark.parametrize("name", METHODS)
def test_each_goes_through_all_its_phases_with_three_classes_in_colour(name: str) -> None:
    pairs, method = make_phantom(6, size=32, n_groups=3, channels=3, n_classes=3), load_method(name)
    settings = SETTINGS.model_copy(update={"loop": SETTINGS.loop.model_copy(update={"steps": 4})})
    recipe = SegmentRecipe(settings, method, info=pairs.info, has_synthetic=True)
    streams = Streams.read(settings, pairs, synthetic=make_phantom(2, size=32, channels=3, n_classes=3, seed=5),
                           unlabelled=pairs if method.needs("unlabelled") else None, extras=extras_of(method))
    for step in range(4):
        logged = recipe.step(streams.batches(step, 0, 1), step / 4)
        assert all(torch.isfinite(value).all() for value in logged.values())
    assert all(torch.isfinite(p).all() for p in recipe.predictor().parameters())


@pytest.mark.parametrize("name", ["anatomy_dae", "geot_2d", "scribble", "adawac", "mip", "noisy_labels", "cw_bass"])
def test_a_batch_of_which_nothing_is_labelled_teaches_nothing_and_breaks_nothing(name: str) -> None:
    method = load_method(name)
    recipe = SegmentRecipe(SETTINGS, method, info=PAIRS.info, has_synthetic=False)
    batch = Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS, extras=extras_of(method)).batches(0, 0, 1)
    batch["labels"].fill_(IGNORE)
    for progress in (0.0, 0.8):
        assert all(torch.isfinite(value).all() for value in recipe.step(batch, progress).values())


# Scribbles.

def test_partial_cross_entropy_does_not_see_what_has_no_label() -> None:
    logits, labels = rand(2, 3, 4, 4).requires_grad_(), torch.full((2, 4, 4), IGNORE)
    labels[0, 1] = torch.tensor([0, 1, 2, 1])
    loss = SUPERVISED["partial_ce"]()(logits, labels, None)
    assert torch.allclose(loss, nn.functional.cross_entropy(logits[0, :, 1].T, labels[0, 1]))
    loss.backward()
    assert (logits.grad[1] == 0).all() and (logits.grad[0, :, 0] == 0).all() and (logits.grad[0, :, 1] != 0).all()
    assert float(SUPERVISED["partial_ce"]()(logits, torch.full((2, 4, 4), IGNORE), None).detach()) == 0
    alone = SUPERVISED["partial_ce"]()(logits[:1], labels[:1], None)
    assert torch.allclose(alone, loss), "an image without a label does not thin out the others'"


def test_each_side_of_the_game_gets_its_own_gradient_alone() -> None:
    torch.manual_seed(0)
    net = HEADS["mask_discriminator"](width=4, levels=2)(Sizes(Widths(8, 16), 1, 2))
    real, fake = labels_to_onehot(disc(16, 8, 8, 4)[None], 2), soft(rand(1, 2, 16, 16)).prob.requires_grad_()
    before = [b.clone() for b in net.buffers()]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        least_squares(net, real, fake).backward()
        optimizer.step()
    with torch.no_grad():
        assert net(real).mean() > net(fake).mean() + 0.3, "the head learns to tell them apart"
        score = net(fake).mean()
        fooled = net(fake - 0.5 * fake.grad / fake.grad.abs().max()).mean()
    assert fooled > score, "the gradient of a prediction leads to a higher score"
    assert not same(before, list(net.buffers()))


def test_neither_side_of_the_game_sees_the_others_gradient() -> None:
    torch.manual_seed(0)
    net = HEADS["mask_discriminator"](width=4, levels=2)(Sizes(Widths(8, 16), 1, 2)).eval()  # slopes stay as they are
    real, fake = labels_to_onehot(disc(16, 8, 8, 4)[None], 2), soft(rand(1, 2, 16, 16)).prob.requires_grad_()
    least_squares(net, real, fake).backward()
    found = [p.grad for p in net.parameters()], fake.grad
    other = fake.detach().clone().requires_grad_()
    told = 0.5 * ((net(real) - 1).square().mean() + net(other.detach()).square().mean())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in
               zip(found[0], torch.autograd.grad(told, list(net.parameters())), strict=True))
    assert torch.allclose(found[1], torch.autograd.grad(0.5 * (net(other) - 1).square().mean(), other)[0], atol=1e-7)


def test_the_discriminator_sees_dense_masks_only_and_nothing_that_gives_scribbles_away() -> None:
    scene = make_scene()
    seen: list[torch.Tensor] = []

    class Listens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, masks: torch.Tensor) -> torch.Tensor:
            """Returns the mean of masks (B, K, H, W), and remembers them."""
            seen.append(masks.detach())
            return masks.mean((1, 2, 3)) + self.bias

    logits = rand(3, 2, 16, 16).requires_grad_()
    scene.seen, scene.heads = {"student": Seen(logits, logits, logits)}, {"discriminator": Listens()}
    scene.supervised.labels[:2, 1:] = IGNORE  # scribbles
    scene.supervised.labels[2, :4] = IGNORE  # nearly dense
    Adversarial()(scene).backward()
    real, fake = seen[0][:3], seen[0][3:]
    assert torch.equal(real, labels_to_onehot(scene.supervised.labels[2:3], 2).expand(3, -1, -1, -1))
    assert torch.equal(fake.sum(1) == 0, real.sum(1) == 0) and (logits.grad != 0).any()
    scene.supervised.labels[2] = IGNORE
    assert float(Adversarial()(scene).detach()) == 0, "no real mask, no game"


# Noisy labels.

def noisy_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns features (1, 4, 16, 16) of a disc, its labels with a wrong patch in it, and where they are wrong."""
    truth = disc(16, 8, 8, 6)[None]
    features = torch.cat([labels_to_onehot(truth, 2), 0.05 * rand(1, 2, 16, 16)], dim=1)
    wrong = torch.zeros(1, 16, 16, dtype=torch.bool)
    wrong[0, 6:9, 6:9] = True
    return features, torch.where(wrong, 1 - truth, truth), wrong


def test_affinity_finds_the_mislabelled_pixels() -> None:
    features, labels, wrong = noisy_case()
    found = affinities(features, labels, 2)
    noisy = noisy_pixels(found, labels, share=0.3, n_classes=2)
    assert noisy[wrong].all() and noisy[~wrong].float().mean() < 0.3
    assert quality(affinities(features, torch.where(wrong, 1 - labels, labels), 2)) > quality(found)
    unit = nn.functional.normalize(features, dim=1)[0].flatten(1)
    alike = (unit.T @ unit)[:, (labels.flatten() == 1)]
    mine = labels.flatten() == 1
    assert torch.allclose(found.same[0].flatten()[mine], alike[mine].mean(1), atol=1e-6)


def test_affinity_does_not_depend_on_the_batch_and_blames_nobody_without_another_class() -> None:
    features, labels, _ = noisy_case()
    both = affinities(torch.cat([rand(1, 4, 16, 16), features]), torch.cat([1 - labels, labels]), 2)
    assert torch.allclose(both.same[1:], affinities(features, labels, 2).same, atol=1e-6)
    alone = affinities(features, torch.zeros_like(labels), 2)
    assert not alone.known.any() and not noisy_pixels(alone, torch.zeros_like(labels), share=0.3, n_classes=2).any()
    assert quality(alone).tolist() == [1.0]


def affinity_scene(progress: float) -> tuple[Scene, torch.Tensor, torch.Tensor]:
    """Returns a scene of a noisy and a clean image and what its labeller says, which is right."""
    scene = make_scene(2)
    features, labels, wrong = noisy_case()
    truth = torch.where(wrong, 1 - labels, labels)
    logits = 9 * labels_to_onehot(truth, 2).repeat(2, 1, 1, 1)
    scene.supervised = dataclasses.replace(scene.supervised, labels=torch.cat([labels, truth]))
    scene._said["supervised student"] = Seen(logits, features.repeat(2, 1, 1, 1), logits)
    scene.progress = progress
    return scene, truth, wrong


def test_noisy_labels_are_left_then_weighed_then_mended() -> None:
    scene, _, _ = affinity_scene(0.4)
    assert Affinity()(scene) is scene.supervised
    scene, _, _ = affinity_scene(0.6)
    weighed = Affinity()(scene)
    assert torch.equal(weighed.labels, scene.supervised.labels)
    assert weighed.weight[:, 0, 0].tolist() == pytest.approx([0.4, 1.0])
    scene, truth, wrong = affinity_scene(0.8)
    mended = Affinity()(scene)
    assert torch.equal(mended.labels[:1][wrong], truth[wrong]) and torch.equal(mended.labels[1:], truth)
    assert scene.memory["quality"].shape == (2,) and scene.memory["quality"][0] < scene.memory["quality"][1]
    scene.supervised = dataclasses.replace(scene.supervised, synthetic=torch.tensor([True, False]))
    assert torch.equal(Affinity()(scene).labels[0], scene.supervised.labels[0]), "synthetic labels are exact"


def test_ranks_are_shares_among_all_that_were_seen() -> None:
    assert ranks(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert ranks(torch.tensor([1.0]), torch.tensor([1.0])).tolist() == [1.0]


# Several observers.

def three_observers(n: int = 4) -> torch.Tensor:
    """Returns what three observers (n, 3, 16, 16) say of the same images: discs that grow."""
    return torch.stack([disc(16, 8, 8, r) for r in (2, 4, 6)]).expand(n, 3, 16, 16).clone()


def test_the_majority_decides_a_tie_does_not_and_255_has_no_voice() -> None:
    observers = three_observers(1)
    assert torch.equal(vote(observers, 2)[0], disc(16, 8, 8, 4))
    tied = vote(observers[:, 1:], 2)[0]
    assert torch.equal(tied == IGNORE, disc(16, 8, 8, 6) != disc(16, 8, 8, 4))
    observers[0, 0] = IGNORE
    assert torch.equal(vote(observers, 2)[0], tied)
    assert (vote(torch.full((1, 3, 2, 2), IGNORE), 2) == IGNORE).all()


def test_sample_believes_one_at_a_time_and_everyone_in_turn() -> None:
    scene, found, before = make_scene(4), set(), []
    for first in range(30):
        scene.supervised = dataclasses.replace(scene.supervised, observers=three_observers(),
                                               seeds=tuple(range(first, first + 4)))
        labels = Sample()(scene).labels
        who = [[torch.equal(one, o) for o in three_observers(1)[0]].index(True) for one in labels]
        found.update(who)
        if before:
            assert who[:3] == before[1:], "who is believed depends on the image's seed alone"
        before = who
    assert found == {0, 1, 2}
    with pytest.raises(UserError, match="observers="):
        Sample()(make_scene())


def test_the_mean_label_is_the_mean_of_the_observers_cross_entropies() -> None:
    scene, logits = make_scene(4), rand(4, 2, 16, 16)
    scene.supervised = dataclasses.replace(scene.supervised, observers=three_observers())
    given = MeanLabels()(scene)
    each = torch.stack([masked_ce(logits, three_observers()[:, o]) for o in range(3)])
    assert torch.allclose(masked_ce(logits, given.prob), each.mean()) and each.std() > 0
    assert torch.allclose(given.prob[0, 1, 8, 8 + 3], torch.tensor(2 / 3))
    assert torch.equal(given.labels, vote(three_observers(), 2))


def test_soft_labels_that_are_hard_are_hard_labels() -> None:
    logits, labels = rand(2, 3, 4, 4), (rand(2, 4, 4, seed=1) > 0).long()
    labels[0, 0] = IGNORE
    weight = rand(2, 4, 4, seed=2).abs()
    for loss in (masked_ce, soft_dice_loss):
        for w in (None, weight):
            assert torch.allclose(loss(logits, labels_to_onehot(labels, 3), weight=w), loss(logits, labels, weight=w))
    prob = shares(three_observers(2), 2)
    assert float(soft_dice_loss(prob.clamp_min(1e-9).log(), prob)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("policy", ["sample", "vote", "mean"])
def test_every_policy_trains_and_the_masks_move_with_their_image(policy: str) -> None:
    recipe, logs = run(changed("observers", labels=policy), 2, unlabelled=False)
    assert all(math.isfinite(float(line["loss"])) for line in logs)
    batch = Streams.read(SETTINGS, PAIRS, extras=extras_of(load_method("observers"))).batches(0, 0, 1)
    scene = recipe._scene(batch, 0.0, [], [])
    recipe.labels = lambda scene: scene.supervised  # the set's own labels, which the one observer repeats
    own = recipe._scene(batch, 0.0, [], []).supervised.labels
    assert torch.equal(scene.supervised.observers, torch.stack([own, own], dim=1))
    assert not torch.equal(scene.supervised.observers[:, 0], batch["observers"][:, 0]), "moved"
    recipe.labels = LABELS[policy]()
    asked: list[torch.Tensor] = []
    recipe.supervised_loss = lambda logits, labels, weight: asked.append(labels) or logits.sum()
    recipe.step(batch, 0.0)
    assert asked[0].is_floating_point() == (policy == "mean"), "shares reach the loss as shares"
