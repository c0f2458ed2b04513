"""BCP: labelled and unlabelled pixels in one image, each part with its own target and weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from phantom import make_phantom
from scenes import SETTINGS, hard_target, make_scene, named_rngs, same, weights
from stages import has_gradient, stage

from segtrain.losses.parts import pseudo_dice_ce
from segtrain.losses.supervised import EPS
from segtrain.method import load_method
from segtrain.recipe import SegmentRecipe
from segtrain.scene import Scene, Supervised
from segtrain.streams import Streams
from segtrain.targets import SOURCES, TARGETS, Target, soft
from segtrain.targets.components import largest_component
from segtrain.transforms.warps import ChainWarp
from segtrain.views import PERTURBATIONS
from segtrain.views.mixes import box_mask, draw_places
from synth.core.checks import IGNORE, UserError

MINE = ("mean_teacher", "ua_mt", "unimatch", "unimatch_v2", "cps", "cct", "mc_net", "cross_teaching", "noisy_student",
        "bcp", "umct")
COLOUR = make_phantom(4, size=32, n_groups=2, channels=3, n_classes=3)


@pytest.mark.parametrize("name", MINE)
def test_every_phase_trains_three_classes_in_colour_and_repeats_itself(name: str) -> None:
    found = []
    for _ in range(2):
        method = load_method(name)
        recipe = SegmentRecipe(SETTINGS, method, info=COLOUR.info, has_synthetic=False)
        streams = Streams.read(SETTINGS, COLOUR, unlabelled=COLOUR)
        logs = [recipe.step(streams.batches(i, 0, 1), p) for i, p in enumerate((0.0, 0.3, 0.8))]
        assert all(torch.isfinite(value).all() for line in logs for value in line.values())
        assert float(logs[-1]["loss_unlabelled"]) > 0 or float(logs[-1]["kept"]) == 0
        found.append(weights(recipe))
    assert same(*found)


@pytest.mark.parametrize("inside", ["labelled", "unlabelled"])
@pytest.mark.parametrize(("n_unlabelled", "n_supervised"), [(3, 3), (5, 2), (2, 5)])
def test_bcp_pastes_labelled_pixels_with_their_own_labels(inside: str, n_unlabelled: int, n_supervised: int) -> None:
    scene = coded_scene(n_unlabelled, n_supervised)
    target = TARGETS["weigh"](factor=0.5)(hard_target(code(scene.clean), 4), scene)
    mixed, warp = PERTURBATIONS["bcp"](inside=inside)(scene.clean, named_rngs(n_unlabelled), scene)
    moved = ChainWarp((warp,)).apply(target)
    assert torch.equal(code(mixed), moved.hard) and torch.equal(moved.prob.argmax(1), moved.hard)
    assert torch.equal(moved.pasted, mixed[:, 0] > 0), "labelled images are positive here, the others negative"
    assert torch.equal(moved.weight, torch.where(moved.pasted, 1.0, 0.5))
    side = int(16 * 2 / 3) ** 2
    assert (moved.pasted.sum((1, 2)) == (side if inside == "labelled" else 256 - side)).all()


def code(images: torch.Tensor) -> torch.Tensor:
    """Returns the classes (B, H, W) that grey values of `coded_scene` stand for."""
    return (images[:, 0].abs() * 5 - 1).round().long()


def coded_scene(n_unlabelled: int, n_supervised: int) -> Scene:
    """Returns a scene whose images say their classes 0 to 3: labelled ones above 0, unlabelled ones below."""
    rng = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 4, (n_unlabelled + n_supervised, 16, 16), generator=rng)
    images = (labels[:, None] + 1) / 5
    given = Supervised(images[n_unlabelled:], labels[n_unlabelled:], torch.zeros(n_supervised, dtype=torch.bool),
                       torch.arange(n_supervised), tuple(range(n_supervised)))
    scene = make_scene(n_classes=4)
    return replace(scene, supervised=given, clean=-images[:n_unlabelled], seeds=tuple(range(n_unlabelled)))


def test_bcp_weighs_synthetic_pixels_and_ignores_unlabelled_ones() -> None:
    scene = coded_scene(2, 2)
    labels = scene.supervised.labels.clone()
    labels[:, 8] = IGNORE
    given = replace(scene.supervised, labels=labels, synthetic=torch.tensor([True, True]))
    scene = replace(scene, supervised=given, w_syn=0.25)
    mixed, warp = PERTURBATIONS["bcp"](inside="labelled", side=1.0)(scene.clean, named_rngs(2), scene)
    moved = warp.apply(hard_target(code(scene.clean), 4))
    assert moved.pasted.all() and torch.equal(moved.weight, 0.25 * moved.valid.float())
    assert not moved.valid[:, 8].any() and moved.valid[:, :8].all()


def test_boxes_of_bcp_lie_anywhere_and_rows_stand_alone() -> None:
    places = draw_places(named_rngs(200))
    mask = box_mask(places, (16, 16), 2 / 3, torch.device("cpu"))
    assert (mask.sum((1, 2)) == 100).all()
    assert set(mask.any(2).int().argmax(1).tolist()) == set(range(7)) == set(mask.any(1).int().argmax(1).tolist())
    assert torch.equal(draw_places(named_rngs(200)[5:6]), places[5:6])


def mix_loss(logits: torch.Tensor, labels: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Returns (cross-entropy + Dice) / 2 over the pixels in `part` (B, H, W) alone, written out."""
    counted = part[:, None].float()
    prob, onehot = logits.softmax(1), F.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    ce = -(logits.log_softmax(1) * onehot * counted).sum() / counted.sum()
    overlap, squares = ((counted * x).sum((0, 2, 3)) for x in (prob * onehot, prob.square() + onehot))
    return 0.5 * (ce + 1 - ((2 * overlap + EPS) / (squares + EPS)).mean())


def test_both_parts_of_a_mix_teach_by_their_own_weight() -> None:
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 8, 8, generator=rng).requires_grad_()
    labels, pasted = torch.randint(0, 3, (2, 8, 8), generator=rng), torch.zeros(2, 8, 8, dtype=torch.bool)
    pasted[:, 1:6, 2:7] = True
    target = replace(hard_target(labels, 3), pasted=pasted, weight=torch.where(pasted, 1.0, 0.5))
    loss = pseudo_dice_ce(logits, target)
    parts = mix_loss(logits, labels, pasted), mix_loss(logits, labels, ~pasted)
    assert torch.allclose(loss, parts[0] + 0.5 * parts[1])
    ours, *theirs = (torch.autograd.grad(x, logits)[0] for x in (loss, *parts))
    inside = pasted[:, None].expand_as(ours)
    assert torch.allclose(ours[inside], theirs[0][inside]) and torch.allclose(ours[~inside], 0.5 * theirs[1][~inside])
    assert ours[inside].any() and ours[~inside].any() and not theirs[0][~inside].any()


def test_dice_ce_of_labels_without_a_mix_is_the_supervised_loss() -> None:
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    labels = logits.roll(1, 1).argmax(1)
    everything = torch.ones(2, 8, 8, dtype=torch.bool)
    assert torch.allclose(pseudo_dice_ce(logits, hard_target(labels, 3)), mix_loss(logits, labels, everything))
    with pytest.raises(UserError, match="argmax"):
        pseudo_dice_ce(logits, soft(logits))


def test_the_first_quarter_of_bcp_mixes_labelled_images_and_looks_at_nothing_else() -> None:
    recipe, scene = stage("bcp", 0.0)
    (shown,) = scene.shown
    assert scene.clean is None and not scene.seen
    mix = shown.warp.warps[0]
    assert torch.equal(shown.images, torch.where(mix.pasted[:, None], scene.supervised.images.roll(-1, 0),
                                                 scene.supervised.images))
    labels = scene.supervised.labels
    assert torch.equal(shown.target.labels(), torch.where(mix.pasted, labels.roll(-1, 0), labels))
    assert torch.equal(shown.target.pasted, mix.pasted) and (mix.pasted.sum((1, 2)) == int(32 * 2 / 3) ** 2).all()
    assert (shown.target.weight[shown.target.valid] == 1).all(), "both parts are labelled, both count fully"


def test_bcp_goes_both_ways_from_a_clean_teacher() -> None:
    recipe, scene = stage("bcp", 0.5, n_trained=2)
    into_unlabelled, into_labelled = scene.shown
    counts = [shown.target.pasted.float().mean((1, 2)) for shown in scene.shown]
    share = (int(32 * 2 / 3) / 32) ** 2
    assert torch.allclose(counts[0], torch.tensor(share)) and torch.allclose(counts[1], torch.tensor(1 - share))
    said = largest_component(TARGETS["argmax"]()(soft(scene.said("teacher").logits), scene))
    for shown in scene.shown:
        own = ~shown.target.pasted
        assert torch.equal(shown.images.movedim(1, -1)[own], scene.clean.movedim(1, -1)[own])
        assert torch.equal(shown.target.hard[own], said.hard[own])
        assert torch.equal(shown.target.valid[own], said.valid[own])
        assert (shown.target.weight[own] == 0.5).all()
    assert not scene.seen, "no loss beside the two mixes'"
    recipe.optimizers["student"].zero_grad()
    logits = into_labelled.seen.logits
    loss, _ = recipe._extra(scene, recipe.phases[1].views, [], 1.0)
    logits.retain_grad()
    loss.backward()
    own = ~into_labelled.target.pasted & into_labelled.target.valid
    given = into_labelled.target.pasted & into_labelled.target.valid
    assert logits.grad.movedim(1, -1)[own].any() and logits.grad.movedim(1, -1)[given].any()
    assert has_gradient(recipe.nets["student"]) and not has_gradient(recipe.averages["teacher"].net)


def test_pasted_pixels_of_another_set_have_no_way_back() -> None:
    scene = coded_scene(2, 2)
    mixed, warp = PERTURBATIONS["bcp"](inside="labelled")(scene.clean, named_rngs(2), scene)
    known = torch.ones(2, 16, 16, dtype=torch.bool)
    assert torch.equal(warp.known(known), ~warp.pasted)
    back, valid = warp.back(mixed, known)
    assert torch.equal(back.movedim(1, -1)[valid], scene.clean.movedim(1, -1)[valid])
    assert torch.equal(warp.move(scene.clean, nearest=False)[:, 0] == 0, warp.pasted)


def blobs() -> Target:
    """Returns the target of one image: class 1 in pieces of 4 and 2 pixels, class 2 in one of 3 that corners join."""
    labels = torch.zeros(1, 6, 6, dtype=torch.long)
    labels[0, 0, :4] = 1
    labels[0, 5, 4:] = 1
    labels[0, [2, 3, 4], [0, 1, 2]] = 2
    return hard_target(labels, 3)


def test_only_the_largest_piece_of_each_class_teaches_and_the_others_are_not_background() -> None:
    found = largest_component(blobs())
    lost = ~found.valid[0]
    assert lost.nonzero().tolist() == [[5, 4], [5, 5]]
    assert (found.hard[0][lost] == 1).all() and float(found.stats["islands"]) == pytest.approx(2 / 36)
    assert largest_component(blobs(), classes=(2,)).valid.all(), "class 1 may come in pieces"
    nothing = largest_component(hard_target(torch.zeros(1, 6, 6, dtype=torch.long)))
    assert nothing.valid.all()


def test_pieces_that_do_not_count_do_not_hide_those_that_do() -> None:
    target = blobs()
    valid = target.valid.clone()
    valid[0, 0] = False
    found = largest_component(replace(target, valid=valid))
    assert found.valid[0, 5].all() and not found.valid[0, 0].any()


def test_labels_of_a_view_weigh_synthetic_images_by_w_syn() -> None:
    scene = make_scene()
    given = replace(scene.supervised, synthetic=torch.tensor([False, True, False]))
    target = SOURCES["labels"]()(replace(scene, supervised=given, w_syn=0.5), "student")
    assert target.weight[:, 0, 0].tolist() == [1.0, 0.5, 1.0]
