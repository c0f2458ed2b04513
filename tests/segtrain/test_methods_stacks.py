"""Projections of stacks of slices."""

from __future__ import annotations

import pytest
import torch
from phantom import make_phantom
from scenes import SETTINGS, changed, extras_of, make_scene, rand

from segtrain.losses.partial import focal_tversky
from segtrain.method import load_method
from segtrain.models import Seen
from segtrain.regularisers.projection import Projection, project
from segtrain.scene import Scene
from segtrain.streams import Streams
from synth.core.checks import IGNORE, UserError
from synth.core.space import labels_to_onehot


def test_a_projection_shows_what_any_slice_shows_and_no_other_stack() -> None:
    values = torch.zeros(5, 1, 2, 2)
    values[0, 0, 0, 0], values[2, 0, 1, 1], values[4, 0, 0, 1] = 1.0, 2.0, 9.0
    found = project(values, torch.tensor([3, 7, 3, 7, -1]))
    assert found[:, 0].tolist() == [[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]]
    order = torch.tensor([2, 3, 0, 1, 4])
    assert torch.equal(project(values[order], torch.tensor([3, 7, 3, 7, -1])[order]), found)
    assert not len(project(values, torch.tensor([0, 1, 2, -1, -1]))), "one slice is no stack"
    assert torch.equal(project(values, torch.tensor([3, 7, 3, 8, -1])), found[:1])


def test_focal_tversky_has_its_closed_form_and_blames_misses_more() -> None:
    truth = labels_to_onehot(torch.tensor([[[1, 1, 0, 0]]]), 2)
    missed = labels_to_onehot(torch.tensor([[[1, 0, 0, 0]]]), 2)
    false = labels_to_onehot(torch.tensor([[[1, 1, 1, 0]]]), 2)
    counted = torch.ones(1, 1, 4)
    expected = {0.7 / 1.7: missed, 0.3 / 2.3: false}
    for index, prob in expected.items():
        assert float(focal_tversky(prob, truth, counted, miss=0.7, gamma=0.75)) == pytest.approx(index**0.75, 1e-4)
    assert float(focal_tversky(truth, truth, counted, miss=0.7, gamma=0.75)) < 1e-4
    assert float(focal_tversky(missed, truth, 0 * counted, miss=0.7, gamma=0.75)) < 1e-4


def projection_scene() -> Scene:
    """Returns a scene of four slices, two of each stack, and predictions that want a gradient."""
    scene, logits = make_scene(4), rand(4, 2, 16, 16).requires_grad_()
    scene.seen = {"student": Seen(logits, logits, logits)}
    scene.batch["stacks"] = torch.tensor([0, 0, 1, 1])
    return scene


def test_the_projection_teaches_the_slice_that_shows_most_and_leaves_out_the_unknown() -> None:
    scene = projection_scene()
    scene.supervised.labels[1, :8] = IGNORE
    logits = scene.seen["student"].logits
    Projection()(scene).backward()
    prob = logits.detach().softmax(1)[:, 1]
    pushed = logits.grad[:, 1] != 0
    assert not pushed[:2, :8].any(), "unknown in one slice is unknown in the projection"
    largest = prob.view(2, 2, 16, 16).amax(1).repeat_interleave(2, 0)
    assert pushed[2:].any() and not (pushed & (prob < largest))[2:].any()


def test_stacks_are_wanted_in_groups_of_several_slices() -> None:
    scene = projection_scene()
    del scene.batch["stacks"]
    with pytest.raises(UserError, match="stack: 4"):
        Projection()(scene)
    with pytest.raises(UserError, match="only image of its group"):
        Streams.read(SETTINGS, make_phantom(4, size=32, n_groups=4), extras=extras_of(load_method("mip")))
    with pytest.raises(UserError, match="stack: 4"):
        extras_of(changed("mip", stack=1))
