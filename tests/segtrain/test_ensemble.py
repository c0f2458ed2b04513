"""The vote by entropy, and the average of what was said of an image: that it acts, in the image's own coordinates."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scenes import PAIRS, extras_of, make_scene, named_rngs, run
from watch import started, watch

from segtrain.method import load_method
from segtrain.models import Seen
from segtrain.scene import Scene
from segtrain.settings import GeometrySettings, SegmentSettings
from segtrain.streams import Streams
from segtrain.targets.ensemble import Temporal, WeightedVote, entropy_vote, recalled
from segtrain.targets.sources import Teacher
from segtrain.transforms.warps import GridWarp
from segtrain.views.weak import weak
from synth.core.checks import UserError

MOVES = {"affine": GeometrySettings(p=1, flip_vertical=True), "elastic": GeometrySettings(p=1, elastic_px=2.0),
         "still": GeometrySettings(p=0, flip_horizontal=False)}
KEY = "temporal student 1 0.99"


def places(n: int, size: int = 32) -> torch.Tensor:
    """Returns the position of each pixel, (n, 2, S, S) in [-1, 1]: smooth, and different everywhere."""
    grid = F.affine_grid(torch.eye(2, 3)[None].expand(n, -1, -1), [n, 1, size, size], align_corners=False)
    return grid.movedim(-1, 1)


def scene_of(name: str, memory: dict | None = None, *, seed: int = 0, n: int = 3) -> Scene:
    """Returns a step on the same images under a weak view of its own, with a memory."""
    scene = make_scene(n, size=32)
    scene.memory = {} if memory is None else memory
    scene.batch["unlabelled_seeds"] = torch.arange(n) + 1000 * seed
    scene.show_clean(MOVES[name])
    return scene


def say(scene: Scene, prob: torch.Tensor) -> torch.Tensor:
    """Makes the student say, in the weak view, foreground of probability `prob` (U, S, S) of the image."""
    both = scene.warp.move(torch.stack([1 - prob, prob], dim=1), nearest=False).clamp(1e-4, 1)
    logits = both.log()
    scene._said["student"] = Seen(logits, logits, logits)
    return logits.softmax(dim=1)


# The vote -------------------------------------------------------------------------------------------------------------

def test_the_vote_weighs_by_certainty_and_is_normalised() -> None:
    opinions = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    sure = [1 + (p * p.log()).sum() / math.log(2) for p in opinions]
    expected = (sure[0] * opinions[0] + sure[1] * opinions[1]) / (sure[0] + sure[1])
    found = entropy_vote(opinions[:, None, :, None, None])
    assert torch.allclose(found.flatten(), expected) and float(found.sum()) == pytest.approx(1)
    assert float(found[0, 0]) > float(opinions[:, 0].mean()), "the surer is heard more"


def test_who_is_sure_outvotes_who_knows_nothing_and_ignorance_stays() -> None:
    certain, unsure = torch.tensor([0.0, 1.0, 0.0]), torch.full((3,), 1 / 3)
    assert torch.allclose(entropy_vote(torch.stack([certain, unsure])[:, None, :, None, None]).flatten(), certain)
    assert torch.allclose(entropy_vote(torch.stack([unsure] * 2)[:, None, :, None, None]).flatten(), unsure)


def test_the_temperature_softens_opinions_first() -> None:
    scene = scene_of("still")
    plain = say(scene, torch.full((3, 32, 32), 0.9))
    soft = WeightedVote(names=("student",), temperature=2.0)(scene, "student").prob
    assert torch.allclose(soft, plain.sqrt() / plain.sqrt().sum(1, keepdim=True), atol=1e-6)


# The way back ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MOVES)
def test_a_weak_view_is_undone_where_it_was_seen_and_unknown_elsewhere(name: str) -> None:
    x = places(4)
    moved, warp = weak(x, named_rngs(4), MOVES[name])
    back, seen = warp.back(moved, torch.ones(4, 32, 32, dtype=torch.bool))
    error = ((back - x).abs() * 16).amax(1)
    assert error[seen].mean() < 0.05 and error[seen].max() < 1, "px"
    assert seen.float().mean() > 0.6 and (name == "still") == bool(seen.all())
    if isinstance(warp, GridWarp):  # what a zoomed view does not show is nowhere in it
        reach = warp.grid.abs().amax((1, 2))
        hidden = (x.abs() > reach[:, :, None, None] + 2 / 32).any(1)
        assert not (seen & hidden).any()


# The average ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("first", "second"), [("affine", "affine"), ("elastic", "affine"), ("still", "elastic")])
def test_the_target_depends_on_what_was_said_under_another_augmentation(first: str, second: str) -> None:
    memory: dict[str, torch.Tensor] = {}
    once = 0.2 + 0.3 * (places(3)[:, 0] + 1)  # a slope: only the right place in the image explains it
    earlier = scene_of(first, memory, seed=1)
    say(earlier, once)
    Temporal()(earlier, "student")
    later = scene_of(second, memory, seed=2)
    now = say(later, torch.full((3, 32, 32), 0.5))
    known = later.warp.known(recalled(earlier, KEY).n > 0)
    target = Temporal()(later, "student").prob[:, 1]
    before = later.warp.move(once, nearest=False)
    expected = 0.6 * now[:, 1] + 0.4 * (before + now[:, 1]) / 2  # the second step of an average: the mean of both
    inner = known & (F.avg_pool2d(known[:, None].float(), 3, 1, 1)[:, 0] > 0.99)
    assert inner.float().mean() > 0.4
    assert (target - expected)[inner].abs().max() < 0.02
    assert (target - now[:, 1])[inner].abs().max() > 0.05, "the ensemble acts"


def test_without_a_memory_it_is_the_plain_target_bit_for_bit() -> None:
    memory: dict[str, torch.Tensor] = {}
    for seed in range(3):
        scene = scene_of("affine", memory, seed=seed)
        say(scene, torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)))
        plain = Teacher()(scene, "student").prob
        assert torch.equal(Temporal(beta=0.0)(scene, "student").prob, plain)
        alone = scene_of("affine", {}, seed=seed)
        alone._said = scene._said
        assert torch.equal(Temporal()(alone, "student").prob, plain), "the first look at an image"
        assert torch.equal(Temporal(share=1.0)(scene, "student").prob, plain)


def test_a_pixel_that_no_view_showed_stays_unknown() -> None:
    zoomed = scene_of("affine", {}, seed=4)
    say(zoomed, torch.full((3, 32, 32), 0.8))
    Temporal()(zoomed, "student")
    _, seen = zoomed.warp.back(zoomed.clean, torch.ones(3, 32, 32) > 0)
    assert not seen.all()
    for row in range(3):
        entry = zoomed.memory[f"{KEY} {row}"]
        assert torch.equal(entry[-1] > 0, seen[row]) and not entry[:, ~seen[row]].any()
        assert entry.dtype == torch.uint8 and entry.untyped_storage().nbytes() == 3 * 32 * 32, "K + 1 bytes a pixel"


def test_bytes_follow_small_changes_which_the_nearest_level_would_not() -> None:
    memory: dict[str, torch.Tensor] = {}
    expected, beta = 0.0, 0.99
    for step in range(220):
        value = 0.5 if step < 120 else 0.6
        scene = scene_of("still", memory, seed=step, n=1)
        say(scene, torch.full((1, 32, 32), value))
        Temporal()(scene, "student")
        decay = min(beta, step / (step + 1))
        expected = decay * expected + (1 - decay) * value
    found = recalled(scene, KEY)
    assert expected > 0.55 and int(found.n[0, 0, 0]) == 220
    assert float(found.prob[0, 1].mean()) == pytest.approx(expected, abs=0.003)


def test_rows_remember_alone_what_they_remember_together() -> None:
    together = scene_of("affine", {}, seed=5)
    prob = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    say(together, prob)
    Temporal()(together, "student")
    alone = make_scene(3, size=32)
    alone.batch |= {"unlabelled": alone.batch["unlabelled"][1:2], "unlabelled_seeds": torch.tensor([5001]),
                    "unlabelled_rows": torch.tensor([1])}
    alone.memory = {}
    alone.show_clean(MOVES["affine"])
    say(alone, prob[1:2])
    Temporal()(alone, "student")
    assert torch.equal(alone.memory[f"{KEY} 1"], together.memory[f"{KEY} 1"]) and len(alone.memory) == 1


def test_squares_of_images_are_refused() -> None:
    settings = SegmentSettings(patch=16, unlabelled_batch_size=4, batch_size=4)
    with pytest.raises(UserError, match="whole images"):
        Streams.read(settings, PAIRS, unlabelled=PAIRS, extras=extras_of(load_method("sparse_seg")))


# SPARSE ---------------------------------------------------------------------------------------------------------------

def test_sparse_asks_both_networks_and_what_they_said_before_and_keeps_a_quarter_of_each_class() -> None:
    recipe, batches = started("sparse_seg")
    assert recipe.model("a").name != recipe.model("b").name

    def look(scene: Scene) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        vote = WeightedVote(names=("a", "b"), temperature=2.0)(scene, "a").prob
        target = recipe.phases[0].views[0].source(scene, "a")  # remembered once a step, whoever asks
        return vote, target.prob, scene.shown[0].target.valid.float().mean()

    (vote, first, kept), (second_vote, second, _) = watch(recipe, batches, look, n_steps=2)
    assert torch.equal(vote, first), "nothing was known"
    assert (second - second_vote).abs().max() > 1e-4, "two of the second step's images were seen in the first"
    assert 0.2 < float(kept) < 0.35
    assert {f"temporal a b 2 0.99 {row}" for row in range(6)} <= set(recipe.memory)


def test_sparse_runs_on_what_a_checkpoint_restores() -> None:
    recipe, _ = run("sparse_seg", 2)
    state = recipe.extra_state()
    assert all(entry.device.type == "cpu" for entry in state["memory"].values() if entry.dtype == torch.uint8)
    again, batches = started("sparse_seg")
    again.load_extra_state(state)
    assert set(again.memory) == set(recipe.memory)
    again.step(batches(2), 2 / 6)
