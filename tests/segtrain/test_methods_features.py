"""UniMatch and CCT: what a network makes of features that were changed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from scenes import named_rngs
from stages import has_gradient, loss_of, stage

from segtrain.scene import Shown
from segtrain.transforms.featurewise import drop_attended
from segtrain.views import FEATURE_PERTURBATIONS


def features(n: int = 3) -> list[torch.Tensor]:
    """Returns two levels of positive features (B, c, h, w)."""
    rng = torch.Generator().manual_seed(2)
    return [torch.rand(n, 8, 8, 8, generator=rng) + 0.1, torch.rand(n, 16, 4, 4, generator=rng) + 0.1]


FEATURE_SETTINGS: dict[str, tuple[dict, dict]] = {
    "feature_dropout": ({}, {"p": 0}), "feature_noise": ({}, {"limit": 0}),
    "attention_drop": ({}, {"low": 1, "high": 1}),
    "complementary_dropout": ({"half": "first", "p": 1}, {"half": "second", "p": 0})}


@pytest.mark.parametrize("name", sorted(FEATURE_SETTINGS))
def test_feature_perturbations_stand_alone_by_row_and_can_be_off(name: str) -> None:
    on, off = (FEATURE_PERTURBATIONS[name](**settings) for settings in FEATURE_SETTINGS[name])
    together = on(features(), named_rngs(3))
    alone = on([f[1:2] for f in features()], named_rngs(3)[1:2])
    for given, found, row in zip(features(), together, alone, strict=True):
        assert found.shape == given.shape and not torch.equal(found, given) and torch.equal(found[1:2], row)
    assert all(torch.equal(a, b) for a, b in zip(off(features(), named_rngs(3)), features(), strict=True))


def test_feature_dropout_takes_whole_channels_and_keeps_the_mean() -> None:
    found = FEATURE_PERTURBATIONS["feature_dropout"]()([torch.ones(2, 400, 2, 2)], named_rngs(2))[0]
    assert set(found.unique().tolist()) == {0.0, 2.0} and torch.equal(found.amin((2, 3)), found.amax((2, 3)))
    assert float(found.mean()) == pytest.approx(1, abs=0.1)


def test_attention_drop_takes_the_most_active_places_and_nothing_else() -> None:
    z = features(2)[:1]
    kept = drop_attended(z, torch.tensor([0.7, 0.9]))[0]
    for row, share in zip(range(2), (0.7, 0.9), strict=True):
        activity = z[0][row].mean(0)
        dropped = activity > share * activity.max()
        assert dropped.any() and torch.equal(kept[row] == 0, dropped.expand(8, -1, -1))
        assert torch.equal(kept[row][:, ~dropped], z[0][row][:, ~dropped])


def test_unimatch_weighs_its_three_views_as_the_paper_and_has_no_teacher() -> None:
    recipe, scene = stage("unimatch")
    assert not recipe.averages and recipe.topology.labeller("student") == "student"
    one, two, third = scene.shown
    assert torch.equal(third.images, scene.clean) and third.perturb is not None and one.perturb is None
    assert not torch.equal(one.images, scene.clean) and not torch.equal(one.images, two.images)
    # An untrained network is sure of nothing: let all pixels teach, else the three losses are 0.
    for shown in scene.shown:
        shown.target = replace(shown.target, valid=torch.ones_like(shown.target.valid))
    phase = recipe.phases[0]
    losses = [float(loss_of(recipe, scene, i).detach()) for i in range(3)]
    expected = 0.5 * (losses[0] / 4 + losses[1] / 4 + losses[2] / 2)
    assert min(losses) > 0
    total, _ = recipe._extra(scene, phase.views, [], phase.lambda_u.at(0.5, 6))
    assert float(total.detach()) == pytest.approx(expected)
    full, _ = recipe._supervised(scene, replace_phase(phase, 1.0))
    assert torch.allclose(recipe._supervised(scene, phase)[0], 0.5 * full) and full > 0


def test_unimatch_sees_its_weak_view_through_dropped_features() -> None:
    recipe, scene = stage("unimatch")
    plain = recipe.topology.students([replace_look(scene.shown[2])])[0].logits
    assert not torch.allclose(plain, scene.shown[2].seen.logits)


def replace_phase(phase: object, supervised: float) -> object:
    """Returns a copy of a phase that weighs labels otherwise."""
    other = copy.copy(phase)
    other.supervised = supervised
    return other


def replace_look(shown: Shown) -> Shown:
    """Returns the same view without a perturbation of its features."""
    return replace(shown, perturb=None)


def test_unimatch_v2_shows_each_channel_to_exactly_one_of_two_views() -> None:
    recipe, scene = stage("unimatch_v2")
    ones = [torch.ones(4, 64, 2, 2), torch.ones(4, 128, 1, 1)]
    hit = set()
    for _ in range(8):  # generators go on: other draws of the same images
        first, second = (shown.perturb(ones) for shown in scene.shown)
        assert all(torch.equal(a + b, torch.full_like(a, 2)) for a, b in zip(first, second, strict=True))
        hit |= {frozenset(row.unique().tolist()) for row in first[0]}
    assert hit == {frozenset({0.0, 2.0}), frozenset({1.0})}, "some images keep their channels, the others lose half"
    assert recipe.averages["teacher"].decay == 0.996
    assert not torch.equal(scene.shown[0].images, scene.shown[1].images)


def test_cct_teaches_the_encoder_and_the_auxiliary_decoders_but_not_the_main_one() -> None:
    recipe, scene = stage("cct", 0.5)
    assert [shown.branch for shown in scene.shown] == ["aux1", "aux2", "aux3"]
    for shown in scene.shown:
        assert torch.equal(shown.images, scene.clean) and shown.perturb is not None
        assert torch.equal(shown.target.prob, scene.said("student").logits.softmax(1))
    sum(loss_of(recipe, scene, i) for i in range(3)).backward()
    net = recipe.nets["student"]
    assert [has_gradient(decoder) for decoder in net.decoders] == [False, True, True, True]
    assert not has_gradient(net.heads[0]) and has_gradient(net.encoder)
