"""Methods as data, the recipe's step, and the teacher's average against its closed form."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml
from scenes import PAIRS, SETTINGS, changed, for_phantom, run, weights
from torch import nn

from segtrain.method import METHODS, Method, load_method, method_text
from segtrain.models import Seen, SegNet, Widths
from segtrain.recipe import PATIENCE, SegmentRecipe
from segtrain.schedule import Schedule
from segtrain.streams import Streams
from segtrain.topology.members import EmaTeacher, Single, Staged
from synth.core.checks import UserError
from synth.core.ema import Ema


def test_lambda_zero_is_supervised_bit_for_bit() -> None:
    supervised, _ = run(load_method("supervised"), unlabelled=False)
    off, logs = run(changed("fixmatch_ema", lambda_u={"max": 0.0}))
    on, _ = run(changed("fixmatch_ema", lambda_u={"max": 1.0}))
    assert all(torch.equal(a, b) for a, b in zip(weights(supervised), weights(off), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(supervised), weights(on), strict=True))
    assert "loss_unlabelled" not in logs[0]


def test_a_vanishing_lambda_approaches_supervised_through_the_joint_forward() -> None:
    sgd = SETTINGS.model_copy(update={"optim": SETTINGS.optim.model_copy(update={"name": "sgd"})})
    found = []
    for method, pile in ((load_method("supervised"), None), (changed("fixmatch_ema", lambda_u={"max": 1e-12}), PAIRS)):
        recipe = SegmentRecipe(sgd, method, info=PAIRS.info, has_synthetic=False)
        recipe.step(Streams.read(sgd, PAIRS, unlabelled=pile).batches(0, 0, 1), 0.0)
        found.append(weights(recipe))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_fixmatch_logs_the_share_it_kept_and_predicts_with_its_teacher() -> None:
    recipe, logs = run(load_method("fixmatch_ema"))
    assert all(0 <= float(line["kept"]) <= 1 and float(line["loss_unlabelled"]) >= 0 for line in logs)
    assert recipe.predictor() is recipe.averages["teacher"].net


def test_the_teacher_sees_unmixed_images_and_gets_no_gradient() -> None:
    recipe, _ = run(load_method("fixmatch_ema"), 1)
    assert all(p.grad is None and not p.requires_grad for p in recipe.averages["teacher"].net.parameters())


class Small(SegNet):
    """One convolution and a batch norm, in the shape of a segmentation network."""

    def __init__(self) -> None:
        encoder = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        super().__init__(nn.Identity(), nn.Identity(), nn.Identity(), stride=1, widths=Widths(2, 2))
        self.encoder = encoder

    def forward(self, images: torch.Tensor, parts: object = None) -> torch.Tensor | Seen:
        """Returns the features of images as if they were logits."""
        x = self.encoder(images)
        return x if parts is None else Seen(x, x, x)


def test_the_teacher_is_the_closed_form_average_buffers_included() -> None:
    net = Small()
    topology = EmaTeacher(decay=0.6)(lambda name: net)
    expected = net.encoder[0].weight.detach().clone()
    rng = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        with torch.no_grad():
            net.encoder[0].weight.add_(torch.randn(net.encoder[0].weight.shape, generator=rng))
        net.train()(torch.randn(2, 1, 4, 4, generator=rng))
        topology.after_step(step / 5)
        decay = min(0.6, 1 - 1 / (step + 1))
        expected = decay * expected + (1 - decay) * net.encoder[0].weight.detach()
    teacher = topology.predictor("teacher").encoder
    assert torch.allclose(teacher[0].weight, expected, atol=1e-6)
    assert torch.equal(teacher[1].running_mean, net.encoder[1].running_mean)
    assert int(teacher[1].num_batches_tracked) == 5
    before = teacher[1].running_mean.clone()
    x = torch.randn(2, 1, 4, 4, generator=rng)
    assert torch.equal(topology.teacher(x, "teacher").logits, topology.teacher(x, "teacher").logits)
    assert torch.equal(teacher[1].running_mean, before)


def test_a_single_network_labels_in_evaluation_mode_and_goes_on_training() -> None:
    net = Small().train()
    topology = Single()(lambda name: net)
    assert topology.labeller("student") == "student"
    assert not topology.teacher(torch.rand(2, 1, 4, 4), "student").logits.requires_grad
    assert net.training and int(net.encoder[1].num_batches_tracked) == 0
    with pytest.raises(UserError, match="take one of student"):
        topology.predictor("teacher")


def test_an_average_of_two_follows_their_mean() -> None:
    nets = [Small(), Small()]
    average = Ema(nets[0], decay=0.5)
    average.update(*nets)
    theirs = torch.stack([net.encoder[0].weight.detach() for net in nets])
    assert torch.allclose(average.net.encoder[0].weight, 0.5 * theirs[0] + 0.5 * theirs.mean(0))


def test_a_staged_run_hands_its_student_on_and_starts_anew() -> None:
    built: dict[str, Small] = {}
    topology = Staged(n=2)(lambda name: built.setdefault(name, Small()))
    student = topology.nets["student"]
    topology.after_step(0.4)
    assert topology.stage == 0
    before = student.encoder[0].weight.detach().clone()
    topology.after_step(0.5)
    assert torch.equal(topology.averages["teacher"].net.encoder[0].weight, before)
    assert torch.equal(student.encoder[0].weight, built["student1"].encoder[0].weight)
    topology.after_step(1.0)
    assert topology.stage == 1, "the last student is not thrown away"


@pytest.mark.parametrize(("unit", "length"), [("fraction", 0.5), ("steps", 50)])
def test_the_ramp_follows_its_formula_in_its_unit(unit: str, length: float) -> None:
    ramp = Schedule(kind="exp", max=2.0, length=length, unit=unit)
    for progress, t in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        expected = 2 * torch.tensor(-5 * (1 - t) ** 2, dtype=torch.float64).exp()
        assert ramp.at(progress, 100) == pytest.approx(float(expected))


def test_a_ramp_without_a_unit_is_refused() -> None:
    with pytest.raises(UserError, match="unit"):
        changed("fixmatch_ema", lambda_u={"kind": "exp", "max": 1.0, "length": 40})


def view(**changes: object) -> dict:
    """Returns a view as YAML would give it."""
    return {"perturb": ["strong"], "target": ["argmax"], "loss": "ce", **changes}


@pytest.mark.parametrize(("bad", "match"), [
    ({"views": [view(target=["argmaxx"])]}, "target: argmaxx.*did you mean argmax"),
    ({"views": [view(perturb=[{"cutmix": {"are_low": 0.1}}])]}, "area_low"),
    ({"views": [view(loss={"ce": {"norm": "some"}})]}, "loss ce"),
    ({"topology": {"ema_teacher": {"decay": 2}}}, "decay"),
    ({"topologie": "single"}, "topology"),
    ({"views": [view(), view(of="supervised", source="mean")]}, "source mean of supervised images"),
    ({"views": [view(of="supervised", source={"teacher": {"name": "teacher"}})]}, "source teacher of supervised"),
    ({"views": [view(source="labels")]}, "source labels of unlabelled images"),
    ({"phases": [{"views": [view(of="supervised", input="tree_max")]}]}, "input tree_max"),
    ({"lambda_u": {"kind": "exp", "length": 40, "unit": "fraction"}}, "a ramp up to 40 of the run is not over"),
    ({"lambda_u": {"kind": "linear", "start": 0.5, "length": 0.6, "unit": "fraction"}}, "a ramp up to 1.1 of the run"),
    ({"lambda_u": {"start": 1.0, "unit": "fraction"}}, "a ramp up to 1 of the run"),
])
def test_mistakes_in_a_method_are_named(tmp_path: Path, bad: dict, match: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"name": "bad", **bad}))
    with pytest.raises(UserError, match=match):
        load_method(path)


@pytest.mark.parametrize(("bad", "match"), [
    ({"views": [view(), view(of="supervised")], "regularisers": [{"use": "cosine_agreement"}]},
     "one is of unlabelled, the other of supervised images"),
    ({"regularisers": [{"use": "entropy"}]}, "regulariser entropy: it speaks of views"),
    ({"views": [view(source="others")]}, "source others: student is the only branch"),
    ({"topology": {"ema_teacher": {"decay": 0.9}}, "heads": {"queue": {"projector": {"of": "hidden", "width": 4}}},
      "phases": [{"supervised": 0, "views": [view()],
                  "regularisers": [{"use": {"pixel_nce": {"head": "queue"}}}]}]},
     "branch student: a term reads what it says of the labelled images"),
    ({"topology": {"multi_decoder": {"n": 3}}, "predictor": "mean"}, "decoders of one network"),
])
def test_what_only_a_step_can_tell_is_named_too(bad: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        run(load_method(Method(name="bad", **{"predictor": "student", **bad})), 1)


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="fixmatch_ema.*supervised"):
        load_method("fixmach")


def test_a_threshold_that_these_classes_cannot_miss_is_refused_before_training() -> None:
    method = changed("fixmatch_ema", views=[view(target=["argmax", {"confidence": {"tau": 0.5}}])])
    with pytest.raises(UserError, match="nothing would be filtered"):
        SegmentRecipe(SETTINGS, method, info=PAIRS.info, has_synthetic=False)


@pytest.mark.parametrize("path", sorted(METHODS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_packaged_method_survives_there_and_back_and_trains(path: Path, tmp_path: Path) -> None:
    method = load_method(path)
    assert method.name == path.stem and method.citation
    (tmp_path / "again.yaml").write_text(method_text(method))
    assert load_method(tmp_path / "again.yaml") == method
    method, settings = for_phantom(method)
    recipe, logs = run(method, 2, unlabelled=method.needs("unlabelled"), settings=settings)
    assert all(torch.isfinite(value).all() for line in logs for value in line.values())
    assert all(torch.isfinite(p).all() for p in recipe.predictor().parameters())


def test_an_inert_filter_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    recipe = SegmentRecipe(SETTINGS, load_method("fixmatch_ema"), info=PAIRS.info, has_synthetic=False)
    batch = Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS).batches(0, 0, 1)
    recipe.n_inert = PATIENCE - 1
    with caplog.at_level(logging.WARNING):
        recipe.step(batch, 0.0)  # an untrained teacher is sure of nothing
        recipe.step(batch, 0.0)
    assert caplog.text.count("it decides nothing; change how strict it is") == 1
