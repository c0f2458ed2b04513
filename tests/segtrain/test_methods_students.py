"""Methods of several answers: who labels for whom, how sure, and what the next student inherits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scenes import PAIRS, SETTINGS, hard_target, make_scene, named_rngs, run, same, weights
from stages import has_gradient, insist, loss_of, stage
from torch import nn

from segtrain.losses import LOSSES
from segtrain.method import load_method
from segtrain.models import Seen, SegNet, Widths
from segtrain.recipe import SegmentRecipe
from segtrain.streams import Streams
from segtrain.targets import SOURCES, from_prob, soft
from segtrain.targets.filters import sharpen
from segtrain.targets.students import PassSettings, entropy_bound, inverse_variance_mean, noisy_passes
from segtrain.topology import Topology
from segtrain.transforms.noise import NoiseSettings, bounded_noise
from segtrain.transforms.turns import TurnSettings, turned, turned_back
from segtrain.views import PERTURBATIONS


def test_mean_teacher_hears_a_noisy_teacher_and_shows_the_student_the_clean_image() -> None:
    recipe, scene = stage("mean_teacher", 0.5, n_trained=2)
    shown = scene.shown[0]
    assert torch.equal(shown.images, scene.clean)
    noise = bounded_noise(scene.clean.shape[1:], scene.rngs("pass", "teacher", 0), NoiseSettings(), torch.device("cpu"))
    said = recipe.topology.teacher(scene.clean + noise, "teacher").logits.softmax(1)
    assert torch.equal(shown.target.prob, said)
    assert not torch.equal(said, scene.said("teacher").logits.softmax(1))
    assert not same(list(recipe.averages["teacher"].net.parameters()), weights(recipe)), "a teacher, not the student"


def test_the_weight_of_mean_teacher_starts_late_and_ends_where_it_says() -> None:
    ramp = load_method("mean_teacher").lambda_u
    assert ramp.at(0.03, 1000) == 0 and 0 < ramp.at(0.04, 1000) < 0.001
    assert ramp.at(1.0, 1000) == pytest.approx(0.1)


def test_passes_differ_by_noise_and_by_dropout_and_rows_stand_alone() -> None:
    scene = make_scene()
    look = {"none": PassSettings(passes=2, sigma=0, dropout=0), "noise": PassSettings(passes=2, dropout=0),
            "dropout": PassSettings(passes=2, sigma=0)}
    passes = {key: noisy_passes(scene, "student", scene.clean, settings) for key, settings in look.items()}
    expected = scene.said("student").logits.softmax(1)
    assert torch.equal(passes["none"], torch.stack([expected, expected])), "no strength is the plain answer"
    assert not torch.equal(*passes["noise"]) and not torch.equal(*passes["dropout"])
    alone = replace(scene, seeds=scene.seeds[1:2])
    for key, settings in look.items():
        row = noisy_passes(alone, "student", scene.clean[1:2], settings)
        assert torch.allclose(row, passes[key][:, 1:2], atol=1e-6)


class Dropping(SegNet):
    """A network that is a dropout layer and a batch norm."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5)), nn.Identity(), nn.Identity(), stride=1,
                         widths=Widths(2, 2))

    def forward(self, images: torch.Tensor, parts: object = None) -> Seen:
        """Returns what the layers leave of images (B, C, H, W), as if logits."""
        x = self.encoder(images)
        return Seen(x, x, x)


def test_only_dropout_layers_work_in_a_noisy_pass() -> None:
    net = Dropping().train()
    topology, x = Topology({"student": net}), torch.rand(2, 2, 8, 8)
    plain, noisy = (topology.teacher(x, "student", dropout=on).logits for on in (False, True))
    assert not torch.equal(plain, noisy) and 0.2 < float((noisy == 0).float().mean()) < 0.8
    assert int(net.encoder[0].num_batches_tracked) == 0 and net.training and net.encoder[1].training
    assert torch.equal(topology.teacher(x, "student").logits, plain)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_entropy_bound_is_a_share_of_ln_k(n_classes: int) -> None:
    spread = torch.linspace(0, 1, 50)
    prob = (1 - spread)[:, None] * F.one_hot(torch.tensor(0), n_classes) + spread[:, None] / n_classes
    target = from_prob(prob.T[None, :, None])
    entropy = torch.distributions.Categorical(prob).entropy()
    kept = entropy_bound(target, share=0.75).valid.flatten()
    assert torch.equal(kept, entropy < 0.75 * math.log(n_classes))
    if n_classes == 4:
        assert (kept & (entropy > 0.75 * math.log(2))).any(), "ln 2 would have dropped these"


def test_ua_mt_lets_more_pixels_teach_as_it_goes_and_its_target_is_the_mean_of_the_passes() -> None:
    _, early = stage("ua_mt", 0.0, n_trained=2)
    _, late = stage("ua_mt", 0.99, n_trained=2)
    first, last = early.shown[0].target, late.shown[0].target
    assert torch.equal(first.prob, last.prob) and 0 < first.valid.sum() < last.valid.sum()
    assert not (first.valid & ~last.valid).any()
    passes = noisy_passes(early, "teacher", early.clean, PassSettings(passes=8))
    assert torch.equal(first.prob, passes.mean(0)) and passes.std(0).max() > 0.01


@pytest.mark.parametrize("name", ["cps", "cross_teaching"])
def test_each_of_two_networks_learns_what_the_other_says_and_only_that(name: str) -> None:
    method = load_method(name)
    recipe = SegmentRecipe(SETTINGS, method, info=PAIRS.info, has_synthetic=False)
    a, b = recipe.nets["a"], recipe.nets["b"]
    insist(a, 0)
    batch = Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS).batches(0, 0, 1)
    views = recipe.phases[0].views
    scene = recipe._scene(batch, 0.0, views, [])
    scene.shown = [view.show(scene, i) for i, view in enumerate(views)]
    own = scene.said("a").logits.argmax(1)
    assert not own.any()
    for_a, for_b = (shown.target for shown in scene.shown)
    theirs = scene.shown[0].warp.apply(hard_target(scene.said("b").logits.argmax(1)))
    assert torch.equal(for_a.hard, theirs.hard) and for_a.hard.any(), "b has not made up its mind"
    assert not for_b.hard.any()
    recipe._look(scene, recipe.phases[0])
    loss_of(recipe, scene, 0).backward()
    assert has_gradient(a) and not has_gradient(b)


def test_cps_mixes_every_image_and_its_labels_alike() -> None:
    _, scene = stage("cps")
    for shown in scene.shown:
        pasted = shown.warp.warps[0].pasted
        assert pasted.any((1, 2)).all() and 0.15 < float(pasted.float().mean()) < 0.55
        assert torch.equal(shown.images, torch.where(pasted[:, None], scene.clean.roll(-1, 0), scene.clean))


def test_cross_teaching_pairs_two_architectures_and_predicts_with_the_first() -> None:
    recipe, _ = stage("cross_teaching")
    a, b = ([tuple(p.shape) for p in weights(recipe, name)] for name in "ab")
    assert a != b and recipe.predictor() is recipe.nets["a"]
    twins, _ = stage("cps")
    assert [p.shape for p in weights(twins, "a")] == [p.shape for p in weights(twins, "b")]
    assert not same(weights(twins, "a"), weights(twins, "b")), "they start differently"


def test_mc_net_asks_the_others_and_equals_the_pairwise_losses() -> None:
    recipe, scene = stage("mc_net", 0.5)
    names = ("student", "aux1", "aux2")
    sharp = {name: sharpen(soft(scene.said(name).logits), temperature=0.1).prob for name in names}
    view = recipe.phases[0].views[1]
    target, logits = scene.shown[1].target, scene.shown[1].seen.logits.detach().requires_grad_()
    assert torch.allclose(target.prob, (sharp["student"] + sharp["aux2"]) / 2)
    mse = LOSSES["mse"]()
    ours, = torch.autograd.grad(view.weight * mse(logits, target), logits)
    theirs, = torch.autograd.grad(sum(mse(logits, from_prob(sharp[n])) for n in ("student", "aux2")), logits)
    assert torch.allclose(ours, theirs, atol=1e-9)
    assert sharp["aux2"].amax(1).mean() > soft(scene.said("aux2").logits).prob.amax(1).mean() + 0.1, "sharpened"


def test_a_decoder_of_mc_net_does_not_teach_itself() -> None:
    recipe, scene = stage("mc_net")
    insist(recipe.nets["student"], 1, decoder=1)
    again = replace(scene, _said={})
    before, after = (SOURCES["others"]()(s, "aux1").prob for s in (scene, again))
    assert torch.equal(before, after)
    assert not torch.equal(SOURCES["others"]()(scene, "aux2").prob, SOURCES["others"]()(again, "aux2").prob)


def states(recipe: SegmentRecipe) -> dict:
    """Returns a copy of all that a checkpoint holds."""
    parts = {"nets": recipe.nets, "averages": recipe.averages, "optimizers": recipe.optimizers}
    found = {key: {name: part.state_dict() for name, part in group.items()} for key, group in parts.items()}
    return copy.deepcopy({**found, "extra": recipe.extra_state()})


def test_the_first_stage_of_noisy_student_is_a_supervised_run() -> None:
    recipe, logs = run("noisy_student", 3)
    plain, _ = run("supervised", 2, unlabelled=False)
    before, _ = run("noisy_student", 2)
    assert "loss_unlabelled" not in logs[-1] and recipe.topology.stage == 1
    # Its learning rate is the loop's to set, so that here the first stage is the supervised run's beginning.
    assert same(weights(plain), weights(before))


def test_a_new_student_starts_without_the_old_one_s_moments_and_learns_from_it() -> None:
    recipe, _ = run("noisy_student", 3)
    assert not recipe.optimizers["student"].state, "moments of weights that are gone"
    assert not same(weights(recipe), list(recipe.averages["teacher"].net.parameters()))
    batch = Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS).batches(3, 0, 1)
    fresh = copy.deepcopy(recipe.nets["student"])
    logged = recipe.step(batch, 0.5)
    assert float(logged["loss_unlabelled"]) > 0
    steps = {float(state["step"]) for state in recipe.optimizers["student"].state.values()}
    assert steps == {1.0}
    moved = max(float((p - q).detach().abs().max()) for p, q in zip(weights(recipe), fresh.parameters(), strict=True))
    assert moved <= 1.01 * SETTINGS.optim.lr * 1.1, "the first step of AdamW is one learning rate long"


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_noisy_student_goes_on_from_either_side_of_its_border(stop: int) -> None:
    through, _ = run("noisy_student", 6)
    first, _ = run("noisy_student", stop)
    saved = states(first)
    again = SegmentRecipe(SETTINGS, load_method("noisy_student"), info=PAIRS.info, has_synthetic=False)
    for key, group in (("nets", again.nets), ("averages", again.averages), ("optimizers", again.optimizers)):
        for name, part in group.items():
            part.load_state_dict(saved[key][name])
    again.load_extra_state(saved["extra"])
    streams = Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS)
    for i in range(stop, 6):
        again.step(streams.batches(i, 0, 1), i / 6)
    assert same(weights(through), weights(again))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_turns_are_exact_and_have_a_way_back(quarters: int, flip: bool) -> None:  # noqa: FBT001 - pytest's
    turn, x = TurnSettings(quarters=quarters, flip=flip), torch.arange(32.0).view(2, 4, 4)
    assert torch.equal(turned_back(turned(x, turn), turn), x)
    images, warp = PERTURBATIONS["turn"](quarters=quarters, flip=flip)(x[:, None], named_rngs(2), None)
    assert torch.equal(warp.move(x, nearest=True), images[:, 0])
    assert torch.equal(warp.back(images, x > 3)[0], x[:, None])
    assert torch.equal(images[:, 0], x) == (not quarters and not flip)


def test_fusion_by_inverse_variance_has_its_closed_form() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.3, 0.7]])[:, None, :, None, None]
    equal = inverse_variance_mean(probs, torch.full((2, 1, 1, 1), 0.01))
    assert torch.allclose(equal.flatten(), torch.tensor([0.6, 0.4]))
    surer = inverse_variance_mean(probs, torch.tensor([0.01, 0.03]).view(2, 1, 1, 1))
    assert torch.allclose(surer.flatten(), torch.tensor([0.75, 0.25]))
    assert torch.isfinite(inverse_variance_mean(probs, torch.zeros(2, 1, 1, 1))).all()


TURNS = {"student": {}, "aux1": {"quarters": 1}, "aux2": {"quarters": 2, "flip": True}}


def test_umct_shows_each_branch_its_own_view_of_labels_and_images() -> None:
    _, scene = stage("umct", 0.5)
    for i, shown in enumerate(scene.shown):
        turn = TurnSettings(**TURNS[shown.branch])
        images = scene.supervised.images if i < 3 else scene.clean
        assert torch.equal(shown.images, turned(images, turn))
        if i < 3:
            assert torch.equal(shown.target.labels(), turned(scene.supervised.labels, turn))
    assert not scene.seen and [shown.branch for shown in scene.shown] == [*TURNS, *TURNS]


def test_umct_fuses_the_other_views_turned_back_and_never_its_own() -> None:
    recipe, scene = stage("umct", 0.5)
    source = SOURCES["other_views"](passes=4, turns=TURNS)
    parts = []
    for name in ("student", "aux2"):
        turn = TurnSettings(**TURNS[name])
        passes = noisy_passes(scene, name, turned(scene.clean, turn), source)
        back = torch.stack([turned_back(one, turn) for one in passes])
        parts.append((back.mean(0), (back - back.mean(0)).square().mean((0, 2))))
    expected = inverse_variance_mean(*(torch.stack(part) for part in zip(*parts, strict=True)))
    assert torch.allclose(source(scene, "aux1").prob, expected, atol=1e-6)
    assert torch.equal(scene.shown[4].target.hard, turned(expected.argmax(1), TurnSettings(quarters=1)))
    insist(recipe.nets["student"], 1, decoder=1)
    fresh = replace(scene, _said={}, _made={})
    assert torch.equal(source(fresh, "aux1").prob, source(scene, "aux1").prob), "its own answer does not count"
    assert (source(fresh, "student").prob[:, 1] > 0.99).float().mean() > 0.95, "no variance: it drowns the unsure view"


def test_views_share_the_passes_they_have_in_common() -> None:
    scene = stage("umct", 0.5)[1]
    assert len(scene._made) == 3, "three views, each looked at once though two others hear it"
