"""The benchmark of the training step: the plain loops compute what our recipes do, so that a ratio means something."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from phantom import make_phantom

from segtrain.method import load_method
from segtrain.recipe import SegmentRecipe
from segtrain.settings import ModelSettings, SegmentSettings
from segtrain.streams import Streams
from segtrain.views.basic import CutMix, Strong
from synth.core.config import load_config
from synth.core.loop import LoopSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

import plain  # noqa: E402
import training  # noqa: E402

PAIRS = make_phantom(6, size=32, n_groups=3)
SETTINGS = SegmentSettings(size=32, batch_size=4, unlabelled_batch_size=4, loop=LoopSettings(steps=6),
                           model=ModelSettings(name="tiny", channels=(8, 16)))


@pytest.mark.parametrize("name", list(plain.PLAIN))
def test_the_plain_loop_computes_what_ours_does(name: str) -> None:
    settings = load_config(SegmentSettings, SETTINGS, training.STILL)
    method = training.without_views(load_method(name))
    pile = PAIRS if name != "supervised" else None
    recipe = SegmentRecipe(settings, method, info=PAIRS.info, has_synthetic=False)
    loop = plain.PLAIN[name](settings, PAIRS, pile)
    streams = Streams.read(settings, PAIRS, unlabelled=pile)
    for step in range(4):
        batch, progress = streams.batches(step, 0, 1), step / 6
        for optimizer in recipe.optimizers.values():  # the loop's part of a step
            for group in optimizer.param_groups:
                group["lr"] = settings.optim.lr * recipe.lr_factor(progress)
        assert float(recipe.step(batch, progress)["loss"]) == pytest.approx(loop.step(batch, progress), abs=1e-5)
    ours = recipe.predictor() if name != "supervised" else recipe.nets["student"]
    theirs = loop.teacher if name != "supervised" else loop.net
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_plain_loop_has_the_methods_own_numbers() -> None:
    method = load_method("fixmatch_ema")
    (view,) = method.views
    assert [step.name for step in view.perturb] == ["strong", "cutmix"] and view.loss.name == "dice"
    assert view.loss.args == {"norm": "all"}
    assert view.perturb[0].args == Strong().model_dump(mode="json")
    assert view.perturb[1].args == CutMix().model_dump(mode="json")
    assert view.target[1].args["tau"] == plain.TAU and method.topology.args["decay"] == plain.DECAY


def test_a_clock_counts_steps_from_one_batch_asked_for_to_the_next() -> None:
    clock = training.Clock(lambda step, rank, n_ranks: {})
    for step in range(training.WARM + 3):
        clock(step, 0, 1)
    clock.asked, clock.given = [0.0, 1, 2, 3, 10, 20], [0.5, 1, 2, 4, 12, 29]
    assert clock.seconds() == 17 and clock.waited() == 3
    track = {"a/ours": [clock], "a/bare": [clock], "a_augmented/ours": [clock], "a_augmented/bare": [clock]}
    clock.worked = [0.0, 1, 2, 3, 4, 5]
    rows = {row.name: row.value for row in training.rows_of(track, n_steps=2)}
    assert rows["ratio/a_over_bare"] == rows["cpu_ratio/a_over_bare_augmented"] == 1
    assert rows["data_wait_share/a"] == 3 / 17 and rows["s_per_step/a/ours"] == 8.5


def test_still_settings_are_still() -> None:
    still = load_config(SegmentSettings, SETTINGS, training.STILL).augment
    assert still.geometry.is_still and still.intensity.is_still
