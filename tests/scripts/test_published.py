"""Released training steps beside ours: their parts do what that code does, and both sides have one budget."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from phantom import make_phantom

from segtrain.compare.prepare import prepare
from segtrain.compare.settings import load_settings
from segtrain.settings import SegmentSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

import published  # noqa: E402
import released  # noqa: E402
from common import CONFIG  # noqa: E402


def make_run(*, steps: int = 4, pile: bool = True) -> released.Run:
    """Returns the data of a run on random images of two classes."""
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 32, 32, generator=rng) * 2 - 1
    return released.Run(images, (images[:, 0] > 0.5).long(), images.flip(0) if pile else None, n_classes=2,
                        steps=steps, batch_sizes=(4, 4))


def weights_after(name: str, run: released.Run) -> torch.Tensor:
    """Returns all parameters of the trained network, (N,)."""
    torch.manual_seed(0)
    return torch.cat([p.flatten() for p in released.RELEASED[name](run).net.parameters()])


@pytest.mark.parametrize("name", list(released.RELEASED))
def test_a_released_step_counts_what_it_sees_and_predicts_labels(name: str) -> None:
    torch.manual_seed(0)
    run = make_run()
    done = released.RELEASED[name](run)
    assert done.images_seen == 16 and not done.net.training
    # BCP's first quarter mixes labelled images alone.
    assert done.unlabelled_seen == {"supervised": 0, "bcp": 12}.get(name, 16)
    assert done.predict(torch.zeros(3, 1, 32, 32)).shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["mean_teacher", "cps"])
def test_the_weight_is_what_unlabelled_images_teach_by(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weighed = weights_after(name, make_run())
    assert torch.equal(weighed, weights_after(name, make_run()))
    monkeypatch.setattr(released.Run, "weight", lambda self, step: 0.0)
    assert not torch.equal(weighed, weights_after(name, make_run()))


def test_the_weight_grows_to_a_tenth_by_the_end_of_the_run() -> None:
    run = make_run(steps=200)
    assert run.weight(200) == pytest.approx(0.1) and run.weight(0) == pytest.approx(0.1 * 2.718281828 ** -5)
    assert run.weight(50) < run.weight(100) < run.weight(199)


def test_dice_is_one_for_a_miss_and_looks_at_its_part_alone() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, :2] = 1
    right = torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
    assert float(released._dice(right, labels)) == pytest.approx(0, abs=1e-4)
    assert float(released._dice(1 - right, labels)) == pytest.approx(1, abs=1e-4)
    wrong_below = right.clone()
    wrong_below[:, :, 2:] = 1 - wrong_below[:, :, 2:]
    above = torch.zeros(4, 4)
    above[:2] = 1
    assert float(released._dice(wrong_below, labels)) > 0.3
    assert float(released._dice(wrong_below, labels, above)) == pytest.approx(0, abs=1e-4)


def test_the_mix_holds_each_part_to_its_own_labels() -> None:
    frame = released._frame(12)
    assert int((frame == 0).sum()) == 64  # two thirds of the side
    images = torch.zeros(2, 1, 12, 12), torch.ones(2, 1, 12, 12)
    seen = []

    def net(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.cat([(1 - x), x], dim=1) * 40

    zeros, ones = (torch.full((2, 12, 12), k) for k in (0, 1))
    right = float(released._mixed(net, images, (zeros, ones), frame, (1.0, 0.5)))
    assert torch.equal(seen[0][0, 0], 1 - frame)
    # A class that a part does not show costs nothing where it is not predicted: both sums are 0.
    assert right == pytest.approx(0, abs=1e-3)
    wrong_box = float(released._mixed(net, images, (zeros, zeros), frame, (1.0, 0.5)))
    wrong_frame = float(released._mixed(net, images, (ones, ones), frame, (1.0, 0.5)))
    assert wrong_frame == pytest.approx(2 * wrong_box, rel=1e-3) and wrong_box > 5


def test_only_the_largest_piece_of_each_class_stays() -> None:
    labels = torch.zeros(1, 6, 6, dtype=torch.long)
    labels[0, 0, 0] = labels[0, 1, 1] = labels[0, 5, 5] = 1  # the first two touch at a corner
    labels[0, 3, :3] = 2
    kept = released._largest(labels, 4)
    assert kept[0, 0, 0] == kept[0, 1, 1] == 1 and kept[0, 5, 5] == 0 and torch.equal(kept[0, 3], labels[0, 3])


def test_images_and_labels_are_moved_together() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(16, 16, dtype=torch.long)
    labels[3:9, 4:7] = 1
    moved = [released._augment(labels[None].float(), labels) for _ in range(80)]
    assert all(torch.equal(image[0].long(), own) for image, own in moved)
    assert len({own.numpy().tobytes() for _, own in moved}) >= 6


def test_a_run_is_found_again_and_has_the_budget_of_ours(tmp_path: Path) -> None:
    settings = load_settings(CONFIG, [
        "size=32", "n_labelled=4", "draws=2", "segment.loop.steps=2", "segment.batch_size=2", "data.root=unused"])
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"root": None})})
    parts = prepare(settings, labelled=make_phantom(12, size=32, n_groups=6))
    segment = SegmentSettings(**{**settings.segment, "size": 32})
    first = published.released_run("bcp", parts, 1, segment, tmp_path)
    assert (first.steps, first.images_seen, first.draw, first.n_labelled) == (2, 4, 1, 4)
    assert [case.id for case in first.cases] == list(parts.test.ids)
    (path,) = (tmp_path / "released").iterdir()
    path.write_text(path.read_text(encoding="utf-8").replace('"steps": 2', '"steps": 3'), encoding="utf-8")
    assert published.released_run("bcp", parts, 1, segment, tmp_path).steps == 3
    assert published.released_run("bcp", parts, 0, segment, tmp_path).steps == 2
