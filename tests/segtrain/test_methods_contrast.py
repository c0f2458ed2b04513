"""Contrastive pre-training, U2PL, C3S3 and RAIL: closed forms, who teaches whom, and what must have no gradient."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from scenes import changed, make_scene, same, weights
from torch import nn
from watch import show, started, unit, watch, with_logits

from segtrain.heads import HEADS, Sizes
from segtrain.models import Widths
from segtrain.regularisers import REGULARISERS
from segtrain.regularisers.contrast import info_nce, local_nce
from segtrain.regularisers.pixels import features_at, pick
from segtrain.regularisers.queue import PixelNce, Side, anchor_nce
from segtrain.scene import Scene
from segtrain.targets import TARGETS, from_prob
from segtrain.targets.rank import reliable
from segtrain.transforms.warps import Stay
from segtrain.views.crops import CropPair
from synth.core.checks import IGNORE, UserError
from synth.core.rng import sample_rng


def rngs(n: int) -> list[torch.Generator]:
    """Returns one generator for each of n rows."""
    return [sample_rng(3, i) for i in range(n)]


# What terms on pixels share


def test_pixels_are_picked_where_allowed_each_image_by_itself() -> None:
    mask = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[1] = False
    picked = pick(mask, rngs(3), 12)
    inside = mask.flatten(1).gather(1, picked.index)
    assert torch.equal(inside, picked.found) and picked.found[0].sum() == min(12, int(mask[0].sum()))
    assert not picked.found[1].any() and len(set(picked.index[0].tolist())) == 12
    alone = pick(mask[2:], rngs(3)[2:], 12)
    assert torch.equal(alone.index, picked.index[2:])


def test_a_pixel_has_the_features_of_its_cell() -> None:
    features = torch.arange(16.0).reshape(1, 1, 4, 4)
    index = torch.tensor([[0, 7, 8 * 7 + 7, 8 * 2 + 1]])
    assert features_at(features, index, (8, 8))[0, :, 0].tolist() == [0, 3, 15, 4]


def test_a_projector_fits_the_network_it_is_for() -> None:
    sizes = Sizes(Widths(8, 16), 1, 2, {"a": Widths(8, 16), "b": Widths(5, 7)})
    out = HEADS["projector"](net="b", of="coarse", width=6)(sizes)(torch.randn(2, 7, 3, 3))
    assert out.shape == (2, 6, 3, 3) and torch.allclose(out.norm(dim=1), torch.ones(()), atol=1e-5)
    with pytest.raises(UserError, match="take one of a, b"):
        HEADS["projector"](net="c")(sizes)


# Global and local contrast


def test_global_contrast_is_its_closed_form() -> None:
    a = unit(0, 1, 2)
    e = math.exp(1 / 0.5)
    assert float(info_nce(a, a, temperature=0.5)) == pytest.approx(-math.log(e / (e + 4)))
    assert float(info_nce(a, a.roll(1, 0), temperature=0.5)) > float(info_nce(a, a, temperature=0.5)) + 1
    assert float(info_nce(a[:1], a[:1], temperature=0.5)) == pytest.approx(0)


def test_local_contrast_counts_found_places_alone() -> None:
    a = unit(0, 1, 2)[None].repeat(2, 1, 1).requires_grad_()
    found = torch.tensor([[True, True, False], [False] * 3])
    e = math.exp(1 / 0.1)
    assert float(local_nce(a, a, found, temperature=0.1).detach()) == pytest.approx(-math.log(e / (e + 1)), abs=1e-6)
    far = local_nce(a, a.detach().roll(1, 1), found, temperature=0.1)
    far.backward()
    assert a.grad[0, :2].any() and not a.grad[0, 2].any() and not a.grad[1].any()
    assert float(local_nce(a, a, found & False, temperature=0.1).detach()) == 0


def test_local_contrast_matches_places_through_two_windows() -> None:
    scene, cells = make_scene(), torch.eye(256).T.reshape(1, 256, 16, 16).expand(3, -1, -1, -1)
    show(scene, cells)
    for i in range(2):
        warp = CropPair(shift=0.2)(scene.clean, scene.rngs("crop", i), scene)[1]
        scene.shown[i] = with_logits(replace(scene.shown[i], warp=warp), cells)
        scene.shown[i].seen = replace(scene.shown[i].seen, hidden=warp.move(cells, nearest=True))
    scene.heads = {"local": nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (16, 16)))}
    term = REGULARISERS["local_nce"]()
    matched = float(term(scene))
    scene.shown = [replace(view, warp=Stay()) for view in scene.shown]
    assert matched < float(term(scene)) - 0.5


def test_pre_training_looks_at_no_label_and_the_rest_at_no_unlabelled_image() -> None:
    settings_of = [started(changed("contrastive_gl")) for _ in range(2)]
    for i, (recipe, batches) in enumerate(settings_of):
        batch = batches(0)
        recipe.step({**batch, "labels": torch.full_like(batch["labels"], IGNORE) if i else batch["labels"]}, 0.0)
    (one, batches), (other, _) = settings_of
    assert same(weights(one), weights(other)), "labels changed nothing"
    untouched = started("contrastive_gl")[0].nets["student"]
    moved = {k for k, v in one.nets["student"].state_dict().items() if not torch.equal(v, untouched.state_dict()[k])}
    assert any(k.startswith("encoder") for k in moved) and any(k.startswith("decoders") for k in moved)
    assert set(one.step(batches(4), 0.5)) == {"loss", "loss_labelled"}


def test_two_views_of_an_image_come_closer_and_others_part() -> None:
    recipe, batches = started("contrastive_gl")
    for optimizer in recipe.optimizers.values():
        optimizer.param_groups[0]["lr"] = 3e-3
    logs = [recipe.step(batches(0), 0.0) for _ in range(25)]
    for term in ("loss_global_nce", "loss_local_nce"):
        assert float(logs[-1][term]) < 0.8 * float(logs[0][term])


# U2PL


def test_the_filter_keeps_the_share_that_is_least_uncertain() -> None:
    confidence = torch.linspace(0.5, 0.99, 100)
    target = from_prob(torch.stack([confidence, 1 - confidence])[None, :, None])
    assert reliable(target, share=0.8).valid.flatten().tolist() == [False] * 20 + [True] * 80
    assert reliable(target, share=1.0).valid.all()
    nothing = replace(target, valid=target.valid & False)
    assert not reliable(nothing, share=0.8).valid.any()
    scene = make_scene()
    for progress, kept in ((0.0, 0.8), (0.5, 0.9), (1.0, 1.0)):
        scene.progress = progress
        found = TARGETS["entropy_quantile"]()(target, scene)
        assert float(found.stats["reliable"]) == pytest.approx(kept) == float(found.valid.float().mean())


def test_anchor_contrast_is_its_closed_form() -> None:
    anchors, far = unit(0, 0), unit(1, 2, 3)[None].repeat(2, 1, 1)
    e = math.exp(1 / 0.5)
    assert float(anchor_nce(anchors, unit(0)[0], far, temperature=0.5)) == pytest.approx(-math.log(e / (e + 3)))


def test_negatives_are_what_a_pixel_is_surely_not() -> None:
    prob = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1]]).T[None, :, None]
    labels = torch.tensor([[[0, IGNORE, 1]]])
    side = Side(prob, prob, prob, labels, None, rngs(1))
    # Labelled: not of class k, yet the teacher's first guess.
    assert [side.negatives(k, 1, 3).flatten().tolist() for k in (0, 1)] == [[False, False, True], [False] * 3]
    unsure = replace(side, unsure=torch.tensor([[[True, True, False]]]))
    assert unsure.negatives(0, 1, 3).flatten().tolist() == [False, True, False], "unsure, and 0 is not its first guess"
    assert unsure.negatives(0, 2, 3).flatten().tolist() == [False, True, False]
    assert unsure.negatives(1, 2, 3).flatten().tolist() == [False] * 3
    assert side.anchors(0, 0.3).flatten().tolist() == [True, False, False]


def contrast_of(scene: Scene, **settings: object) -> torch.Tensor:
    """Returns U2PL's contrast of a step."""
    return PixelNce(**settings)(scene)


def test_two_classes_have_a_contrast_and_the_released_rank_gives_none() -> None:
    recipe, batches = started("u2pl")
    queue = {k: v for k, v in recipe.memory.items()}
    [(ours, released)] = watch(recipe, batches, lambda scene: (
        contrast_of(scene).detach(), contrast_of(replace(scene, memory=dict(queue), supervised=replace(
            scene.supervised, labels=torch.full_like(scene.supervised.labels, IGNORE))), low_rank=3).detach()))
    assert float(ours) > 0.1
    assert float(released) == 0, "with two classes no unsure pixel has a class of rank 3: a known bug of the release"


def test_nothing_to_contrast_is_zero() -> None:
    def nothing(scene: Scene) -> torch.Tensor:
        empty = replace(scene.shown[0].target, valid=scene.shown[0].target.valid & False)
        scene.shown[0] = replace(scene.shown[0], target=empty)
        scene.supervised = replace(scene.supervised, labels=torch.full_like(scene.supervised.labels, IGNORE))
        return contrast_of(scene).detach()

    recipe, batches = started("u2pl")
    assert float(watch(recipe, batches, nothing)[0]) == 0


def test_the_memory_is_capped_forgets_the_oldest_and_survives_a_restart() -> None:
    method = changed("u2pl", regularisers=[{"use": {"pixel_nce": {"queue": 60}}, "weight": 0.1}])
    recipe, batches = started(method)
    for step in range(2):
        recipe.step(batches(step), step / 6)
    before = {k: v.clone() for k, v in recipe.memory.items()}
    assert set(before) == {"pixel_nce_0", "pixel_nce_1"} and all(v.shape[1] == 32 for v in before.values())
    again, _ = started(method)
    again.load_extra_state(copy.deepcopy(recipe.extra_state()))
    for name, net in recipe.nets.items():
        again.nets[name].load_state_dict(net.state_dict())
        again.optimizers[name].load_state_dict(copy.deepcopy(recipe.optimizers[name].state_dict()))
    again.averages["teacher"].load_state_dict(recipe.averages["teacher"].state_dict())
    logs = [[r.step(batches(step), step / 6) for step in (2, 3)] for r in (recipe, again)]
    assert logs[0] == logs[1] and same(weights(recipe), weights(again))
    after = recipe.memory["pixel_nce_1"]
    assert 0 < len(after) <= 60 and not torch.equal(after, before["pixel_nce_1"])
