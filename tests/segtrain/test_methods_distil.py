"""Distillation to a light student, and learning behind a transition matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scenes import PAIRS, SETTINGS, make_scene, rand, run, same, weights

import segtrain
from segtrain.heads import HEADS, Sizes
from segtrain.losses.consistency import consistency_ce
from segtrain.losses.transition import confusion, forward_corrected_ce, rows_of
from segtrain.method import load_method
from segtrain.models import Seen, Widths
from segtrain.recipe import SegmentRecipe
from segtrain.regularisers.corrected import Corrected
from segtrain.regularisers.distil import ImageDistil, RegionDistil, image_distance, region_distance, self_similarity
from segtrain.scene import Shown
from segtrain.streams import Streams
from segtrain.targets import from_labels, from_prob, soft
from segtrain.targets.filters import argmax
from segtrain.targets.weights import Neighbours
from segtrain.transforms.warps import Stay
from synth.core.checks import IGNORE, UserError
from synth.core.loop import Batch

# MGD: two larger teachers and a light student.

def test_mgd_builds_larger_teachers_and_predicts_with_the_light_student() -> None:
    recipe, _ = run("mgd", 1)
    sizes = {name: sum(p.numel() for p in recipe.nets[name].parameters()) for name in ("student", "wide", "other")}
    assert sizes["wide"] > 3 * sizes["student"] and sizes["other"] > sizes["student"]
    assert recipe.predictor() is recipe.nets["student"]
    assert recipe.predictor_models() == (SETTINGS.model,)
    assert recipe.model("wide").channels == (16, 32) and recipe.model("other").name != SETTINGS.model.name


def test_mgd_labels_go_both_ways() -> None:
    views = {(v.branch, str(v.source.args)) for v in load_method("mgd").views if v.loss}
    assert views == {("student", "{'names': ['wide', 'other']}"), ("wide", "{'name': 'student'}"),
                     ("other", "{'name': 'student'}")}


def test_region_similarity_does_not_depend_on_width_or_scale_but_on_what_is_alike() -> None:
    features = rand(2, 4, 8, 8)
    assert self_similarity(features, 4).shape == (2, 16, 16)
    wider = torch.cat([features, features], dim=1)
    assert float(region_distance(features, 3 * wider, 4)) == pytest.approx(0, abs=1e-10)
    assert region_distance(features, features.flip(-1), 4) > 1e-3
    one, two = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    two[:, 0] = 3.0
    two[:, 1, 0, 0] = 16.0
    assert float(image_distance(one, two)) == pytest.approx(4.0)


@pytest.mark.parametrize("kind", [ImageDistil, RegionDistil])
def test_distillation_teaches_the_student_alone_and_wants_the_clean_images(kind: type) -> None:
    scene, features = make_scene(), rand(3, 4, 4, 4).requires_grad_()
    scene.shown = [Shown("student", scene.clean, Stay(), soft(features), seen=Seen(features, features, features))]
    scene._said["wide"] = Seen(rand(3, 4, 4, 4, seed=1), features, rand(3, 6, 2, 2, seed=2))
    kind(teachers=("wide",))(scene).backward()
    assert (features.grad != 0).any()
    scene.shown[0].images = scene.clean + 0.1
    with pytest.raises(UserError, match="without perturb"):
        kind(teachers=("wide",))(scene)


# GeoT: forward correction.

def test_the_identity_matrix_gives_plain_cross_entropy_and_its_gradient() -> None:
    target = argmax(soft(rand(2, 3, 4, 4, seed=1)))
    target.valid[0, 0] = False
    one, two = (rand(2, 3, 4, 4).requires_grad_() for _ in range(2))
    plain = consistency_ce(one, target, norm="valid")
    corrected = forward_corrected_ce(two, target, torch.eye(3)[None, :, :, None, None])
    assert torch.allclose(plain, corrected)
    plain.backward()
    corrected.backward()
    assert torch.allclose(one.grad, two.grad, atol=1e-7) and (two.grad[0, :, 0] == 0).all()


def test_behind_the_true_matrix_the_truth_is_the_minimum() -> None:
    matrix = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    logits = torch.zeros(1, 2, 1, 1000).requires_grad_()
    share = 0.4 * 0.8 + 0.6 * 0.3  # of labels that say 0 when 0.4 of the pixels are 0
    labels = (torch.arange(1000) >= round(1000 * share)).long()[None, None]
    optimizer = torch.optim.Adam([shift := torch.zeros(1, 2, 1, 1, requires_grad=True)], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        forward_corrected_ce(logits + shift, from_labels(labels, 2), matrix[None, :, :, None, None]).backward()
        optimizer.step()
    assert float(shift.detach().softmax(1)[0, 0]) == pytest.approx(0.4, abs=0.01)


def test_matrices_are_distributions_and_the_class_matrix_is_the_confusion() -> None:
    said, labels = torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, IGNORE]]])
    counts = confusion(said, labels, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert rows_of(counts, torch.eye(3, dtype=torch.float64)).tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]
    head = HEADS["transition"]()(Sizes(Widths(8, 16), 1, 3))
    found = head(soft(rand(2, 3, 4, 4)).prob, soft(rand(2, 3, 4, 4, seed=1)).prob)
    assert found.shape == (2, 3, 3, 4, 4) and torch.allclose(found.sum(2), torch.ones(2, 3, 4, 4))
    assert (found.diagonal(dim1=1, dim2=2) > 0.9).all(), "at first it corrects next to nothing"


def test_geot_learns_its_matrices_and_its_student_through_them() -> None:
    recipe, _ = run("geot_2d", 1)
    before = [p.detach().clone() for p in weights(recipe, "head_transition")]
    recipe.step(Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS).batches(1, 0, 1), 1 / 6)
    assert not same(before, weights(recipe, "head_transition"))
    matrix = recipe.memory["transition"]
    assert torch.allclose(matrix.sum(1), torch.ones(2, dtype=torch.float64)) and (matrix.diagonal() > 0.99).all()
    assert not torch.equal(matrix, torch.eye(2, dtype=torch.float64))


def test_the_heads_share_reaches_student_and_head_and_none_is_the_class_matrix_alone() -> None:
    torch.manual_seed(0)
    scene, logits = make_scene(), rand(3, 2, 16, 16).requires_grad_()
    head = HEADS["transition"]()(Sizes(Widths(8, 16), 1, 2))
    target = argmax(soft(rand(3, 2, 16, 16, seed=1)))
    scene.heads = {"transition": head}
    scene.shown = [Shown("student", scene.clean, Stay(), target, seen=Seen(logits, logits, logits))]
    scene.memory["transition"] = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    alone = Corrected(own=0.0, decay=0.0)(scene)
    alone.backward()
    assert head.linear.bias.grad is None
    matrix = scene.memory["transition"].float()[None, :, :, None, None]
    assert torch.allclose(alone, forward_corrected_ce(logits, target, matrix))
    shared = Corrected(own=0.5, decay=0.999999)(scene)
    shared.backward()
    by_pixel = head(target.prob, scene.memory["transition"].float()[target.hard].movedim(-1, 1))
    assert torch.allclose(shared, forward_corrected_ce(logits, target, 0.5 * matrix + 0.5 * by_pixel), atol=1e-5)
    assert head.linear.bias.grad.abs().sum() > 0


def test_neighbours_blend_and_share_zero_is_the_identity() -> None:
    prob = torch.zeros(1, 2, 5, 5)
    prob[:, 0] = 1
    prob[0, :, 2, 2] = torch.tensor([0.0, 1.0])
    blended = Neighbours(share=1.0)(from_prob(prob), None).prob
    assert torch.allclose(blended[0, 1, 1:4, 1:4], torch.full((3, 3), 1 / 9)) and blended[0, 1, 0, 0] == 0
    assert torch.allclose(blended.sum(1), torch.ones(1, 5, 5))
    assert torch.equal(Neighbours(share=0.0)(from_prob(prob), None).prob, prob)


class Stop(Exception):
    """What kills a run."""


@pytest.mark.parametrize("name", ["cw_bass", "adawac", "geot_2d", "noisy_labels", "scribble"])
def test_what_a_method_remembers_survives_a_killed_run(name: str, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**SETTINGS.model_dump(mode="json"), "loop": {"steps": 5, "log_every": 1, "checkpoint_every": 3}}
    pile = PAIRS if load_method(name).needs("unlabelled") else None

    def fit(out: str) -> bytes:
        segtrain.fit(config, PAIRS, unlabelled=pile, method=name, out=tmp_path / out)
        return (tmp_path / out / "stats.jsonl").read_bytes()

    step = SegmentRecipe.step

    def dies(self: SegmentRecipe, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        if self.n_steps == 4:
            raise Stop
        return step(self, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentRecipe, "step", dies)
        with pytest.raises(Stop):
            fit("cut")
    assert fit("cut") == fit("whole")
