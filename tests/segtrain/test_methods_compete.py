"""C3S3 and RAIL: the better branch teaches, branches take turns, and only what they differ in counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scenes import make_scene, run
from torch import nn
from watch import show, started, unit, watch, with_logits

from segtrain.regularisers import REGULARISERS
from segtrain.regularisers.agree import agreement_nce, one_minus_cosine
from segtrain.regularisers.disagree import disagreement, kl_to_uniform
from segtrain.scene import Scene
from segtrain.targets.rank import best_branch
from synth.core.checks import IGNORE

# C3S3


def spoil(net: nn.Module) -> None:
    """Makes a network of two classes sure that everything is foreground."""
    with torch.no_grad():
        for p in net.heads.parameters():
            p.zero_()
            if p.ndim == 1:
                p[len(p) // 2:] = 20


def test_the_better_branch_teaches_and_learns_nothing_from_itself() -> None:
    for worse, better in (("a", "b"), ("b", "a")):
        recipe, batches = started("c3s3")
        for step in range(3):
            recipe.step(batches(step), step / 6)
        assert type(recipe.nets["a"].encoder) is not type(recipe.nets["b"].encoder), "two architectures"
        spoil(recipe.nets[worse])

        def look(scene: Scene, worse: str = worse, better: str = better) -> None:
            assert best_branch(scene, alpha=0.8) == better
            views = {view.branch: view for view in scene.shown}
            assert not views[better].target.valid.any() and views[worse].target.valid.all()
            expected = (scene.said(better).logits / 0.1).softmax(1)
            assert torch.allclose(views[worse].target.prob, expected, atol=1e-4)

        watch(recipe, batches, look, first=4)


def test_each_network_agrees_with_itself_on_its_two_views() -> None:
    recipe, batches = started("c3s3")
    pairs = [term.call.views for term in recipe.phases[0].terms if term.name == "cosine_agreement"]
    branches = [view.branch for view in recipe.phases[0].views]
    assert [(branches[i], branches[j]) for i, j in pairs] == [("a", "a"), ("b", "b")]
    assert all(term.weight * recipe.phases[0].lambda_u.max == pytest.approx(1.0) for term in recipe.phases[0].terms
               if term.name == "cosine_agreement")
    terms = [term for term in recipe.phases[0].terms if term.name == "cosine_agreement"]
    told = watch(recipe, batches, lambda scene: sum(float(term.call(scene).detach()) for term in terms))
    recipe, batches = started("c3s3")
    assert float(recipe.step(batches(0), 0.0)["loss_cosine_agreement"]) == pytest.approx(told[0]), "both are logged"


def test_agreement_is_a_cosine_and_disjoint_answers_are_apart() -> None:
    sure = 60 * torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 2, 2)
    both = torch.ones(1, 2, 2, dtype=torch.bool)
    assert float(one_minus_cosine(sure, sure.flip(1), both)) == pytest.approx(1)
    assert float(one_minus_cosine(sure, sure, both)) == pytest.approx(0, abs=1e-6)
    assert float(one_minus_cosine(sure, torch.zeros_like(sure), both)) == pytest.approx(1 - math.sqrt(0.5))
    assert float(one_minus_cosine(sure, sure.flip(1), ~both)) == 0


def test_contrast_of_agreement_is_its_closed_form() -> None:
    e = math.exp(1 / 0.1)
    found = agreement_nce(unit(0, 0), unit(0, 0, 0), unit(1, 2), temperature=0.1)
    assert float(found) == pytest.approx(-math.log(3 * e / (3 * e + 2)), abs=1e-6)
    swapped = agreement_nce(unit(0, 0), unit(1, 2), unit(0, 0, 0), temperature=0.1)
    assert float(swapped) == pytest.approx(-math.log(2 / (3 * e + 2)), rel=1e-5)
    assert float(agreement_nce(unit(0)[:0], unit(0), unit(1), temperature=0.1)) == 0
    assert float(agreement_nce(unit(0), unit(0), unit(1)[:0], temperature=0.1)) == 0


def test_only_foreground_of_the_two_branches_is_contrasted() -> None:
    scene = make_scene()
    column = torch.arange(16)[None, None, :].expand(3, 16, 16)
    a, b = (torch.where(column < limit, 5.0, -5.0) for limit in (4, 8))
    show(scene, torch.stack([-a, a], dim=1))
    scene.shown[1] = with_logits(scene.shown[1], torch.stack([-b, b], dim=1))
    hidden = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for view in scene.shown:
        view.seen = replace(view.seen, hidden=hidden)
    scene.heads = {"a": nn.Identity(), "b": nn.Identity()}
    REGULARISERS["odcl"](n=256)(scene).backward()
    touched = hidden.grad.abs().sum(1)
    assert (touched[:, :, :8] > 0).all() and not touched[:, :, 8:].any()
    told_apart = unit(0, 1, 2)[(column >= 4).long() + (column >= 8)].movedim(-1, 1)
    for view in scene.shown:
        view.seen = replace(view.seen, hidden=told_apart)
    assert float(REGULARISERS["odcl"](n=256)(scene)) < 1e-4, "what both see is not among what one alone sees"


# RAIL


def test_groups_take_turns() -> None:
    recipe, batches = started("rail")

    def look(scene: Scene) -> dict[str, bool]:
        learns = {view.branch: False for view in scene.shown}
        for view in scene.shown:
            learns[view.branch] |= bool(view.target.valid.any())
        said = (scene.topology.teacher(scene.clean, "teacher_b").logits / 0.1).softmax(1)
        assert torch.allclose(scene.shown[2].target.prob, said, atol=1e-4), "the other average teaches, sharpened"
        return learns

    found = watch(recipe, batches, look, n_steps=4)
    assert found == [{"a": True, "b": False}, {"a": False, "b": True}] * 2


def test_uniform_is_where_a_certain_answer_is_far_from() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [90.0, 0.0, 0.0]])[..., None, None]
    assert torch.allclose(kl_to_uniform(logits).flatten(), torch.tensor([0.0, math.log(3)]), atol=1e-6)


def test_doubt_reaches_the_learner_where_the_two_differ_and_nobody_else() -> None:
    scene = make_scene()
    a = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    b = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    show(scene, a)
    scene.shown = [replace(with_logits(scene.shown[0], x), branch=name) for x, name in ((a, "a"), (b, "b"))]
    scene.topology.routes = {"a": None, "b": None}
    for step, learner, other in ((0, a, b), (1, b, a)):
        scene.step, a.grad, b.grad = step, None, None
        REGULARISERS["uniform_disagreement"]()(scene).backward()
        differ = (a.argmax(1) != b.argmax(1))[:, None].expand_as(a)
        assert (learner.grad[differ] != 0).all() and not learner.grad[~differ].any()
        assert other.grad is None or not other.grad.any()


def test_labelled_disagreement_pulls_only_where_it_should() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]]).T[None, :, None].requires_grad_()
    best = torch.tensor([[0.0, 2.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]).T[None, :, None].requires_grad_()
    labels = torch.tensor([[[1, 1, IGNORE, 0]]])
    disagreement(student, best, labels, mse=1.0, kl=0.0).backward()
    pulled = student.grad[0, 1, 0]
    assert (pulled != 0).tolist() == [True, False, False, True] and best.grad is None
    assert pulled[0] < 0 < pulled[3], "towards the label, not towards the best one, which is wrong in the last pixel"
    student.grad = None
    wrong = disagreement(student, best, labels, mse=0.0, kl=1.0)
    wrong.backward()
    assert (student.grad[0].abs().sum(0)[0] > 0).tolist() == [True, False, False, False], "where it is also wrong"
    assert float(wrong.detach()) == pytest.approx(math.log(1 + math.exp(2)), abs=1e-6)
    assert float(disagreement(best, best, labels, mse=1.0, kl=1.0).detach()) == 0


def test_rail_logs_its_terms() -> None:
    _, logs = run("rail", 2)
    assert {"loss_labelled_disagreement", "loss_uniform_disagreement"} <= set(logs[0])
