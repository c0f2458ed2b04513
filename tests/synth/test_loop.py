"""The training loop: resuming after kill -9, counts, learning rates, losses that are not finite, two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from killed import LOOP, Line, line_batches
from tiny import killed_and_whole, launch, room_of

from synth.core.checks import UserError
from synth.core.loop import LoopSettings, Recipe, TrainResult, cosine, poly, train

HERE = Path(__file__).parent


def run(out: Path, *, recipe: Line | None = None, **settings: int) -> tuple[Line, TrainResult]:
    """Returns the recipe and result of 20 steps (unless `settings` say otherwise)."""
    recipe = recipe or Line()
    return recipe, train(recipe, line_batches, out, LoopSettings(**{"steps": 20, "log_every": 6, **settings}))


def lines(out: Path) -> list[dict[str, float]]:
    """Returns the log of a run."""
    return [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]


def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    said = killed_and_whole("loop", tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "stats.jsonl").read_bytes() == (killed / "stats.jsonl").read_bytes()
    states = [torch.load(d / "checkpoint.pt", weights_only=True) for d in (whole, killed)]
    for part in ("step", "counts", "meter", "extra"):
        assert states[0][part] == states[1][part], (part, said)
    for part in ("nets", "averages"):
        assert_same(states[0][part], states[1][part])
    names = [sorted(p.name for p in d.iterdir()) for d in (whole, killed)]
    assert names[0] == names[1] == ["checkpoint.pt", "done.json", "stats.jsonl"], "nothing half written stays"
    assert json.loads((killed / "done.json").read_text())["counts"] == {"images_seen": 400, "unlabelled_seen": 800}


def assert_same(a: object, b: object) -> None:
    """Asserts that two nested states are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


def test_a_checkpoint_for_which_there_is_no_room_says_so_and_the_run_goes_on_later(tmp_path: Path) -> None:
    whole, full = tmp_path / "whole", tmp_path / "full"
    run(whole)
    with room_of(1_500), pytest.raises(UserError, match=r"checkpoint\.pt: no space left"):
        run(full, checkpoint_every=4)
    assert [p.name for p in full.iterdir()] == []
    run(full, checkpoint_every=4)
    assert (full / "stats.jsonl").read_bytes() == (whole / "stats.jsonl").read_bytes()


def test_the_log_counts_images_and_averages_what_was_since_the_last_line(tmp_path: Path) -> None:
    _, result = run(tmp_path)
    log = lines(tmp_path)
    assert [line["step"] for line in log] == [6, 12, 18, 20]
    assert [line["images_seen"] for line in log] == [48, 96, 144, 160]
    assert result.counts == {"images_seen": 160, "unlabelled_seen": 320} and result.steps == 20
    every = tmp_path / "every"
    run(every, log_every=1)
    each = [line["loss"] for line in lines(every)]
    assert log[0]["loss"] == pytest.approx(sum(each[:6]) / 6, rel=1e-4)
    assert log[-1]["loss"] == pytest.approx(sum(each[18:]) / 2, rel=1e-4), "the last line spans two steps, not six"


def test_the_learning_rate_follows_its_schedule(tmp_path: Path) -> None:
    recipe, _ = run(tmp_path)
    assert recipe.seen_lr == pytest.approx([0.05 * cosine(i / 20) for i in range(20)])


def test_schedules_have_their_closed_forms() -> None:
    assert cosine(0.05) == 1 and cosine(1.0) == pytest.approx(0) and cosine(0.525) == pytest.approx(0.5)
    assert 0 < cosine(0.0) < 0.05 and cosine(0.0) < cosine(0.02) < cosine(0.05)
    assert poly(0) == 1 and poly(1) == 0 and poly(0.5) == pytest.approx(0.5**0.9)


class Bad(Line):
    """Its loss is not a number at one step."""

    def __init__(self, value: float, at: int) -> None:
        super().__init__()
        self.value, self.at, self.done = value, at, 0

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor]:
        """Updates on x (B, 3); returns the scalar loss, spoilt at step `at`."""
        scalars = super().step(batch, progress)
        self.done += 1
        return {**scalars, "loss": torch.tensor(self.value)} if self.done == self.at else scalars


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_at_that_step(tmp_path: Path, value: float) -> None:
    words = r"train: loss is (nan|inf) at step 9; lower the learning rate lr=0.05$"
    with pytest.raises(FloatingPointError, match=words):
        run(tmp_path, recipe=Bad(value, 9), checkpoint_every=4)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 8 and all(torch.isfinite(v).all() for v in state["nets"]["line"].values())
    assert not (tmp_path / "done.json").exists()


def test_a_finished_run_returns_at_once_with_its_weights(tmp_path: Path) -> None:
    first, result = run(tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != "done.json"}
    torch.manual_seed(99)
    again = Line()
    torch.nn.init.zeros_(again.nets["line"][0].weight)
    second, repeated = run(tmp_path, recipe=again)
    assert repeated == result and second.seen_lr == []
    assert torch.equal(first.nets["line"][0].weight, second.nets["line"][0].weight)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != "done.json"} == {
        **before, "stats.jsonl": (tmp_path / "stats.jsonl").stat().st_mtime_ns}


def test_another_precision_may_follow_in_the_same_process(tmp_path: Path) -> None:
    run(tmp_path / "first")
    recipe = Line()
    train(recipe, line_batches, tmp_path / "second", LoopSettings(steps=4, mixed_precision="bf16"))
    assert recipe.nets["line"](torch.zeros(1, 3)).dtype == torch.float32, "the wrapper is gone"
    assert lines(tmp_path / "second")[-1]["loss"] > 0


class Three(Recipe):
    """Three networks in one loss, the last of which it does not reach."""

    def __init__(self, scaler: torch.amp.GradScaler | None) -> None:
        super().__init__()
        self.nets = {name: torch.nn.Linear(3, 1) for name in "abc"}
        for i, net in enumerate(self.nets.values()):
            torch.nn.init.constant_(net.weight, 0.1 * (i + 1))
        self.optimizers = {name: torch.optim.SGD(net.parameters(), lr=0.1) for name, net in self.nets.items()}
        self.scaler = scaler
        self.backward = lambda loss: (loss if scaler is None else scaler.scale(loss)).backward()

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor]:
        """Moves on x (B, 3)."""
        loss = self.nets["a"](batch["x"]).square().mean() + 4 * self.nets["b"](batch["x"]).square().mean()
        self.descend(loss, clip=0.5)
        return {"loss": loss.detach()}

    def count(self, batch: dict[str, torch.Tensor]) -> dict[str, int]:
        """Returns how many rows there are."""
        return {"images_seen": len(batch["x"])}


def test_scaled_losses_move_every_network_as_far_as_plain_ones() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    plain, scaled = Three(None), Three(scaler)
    batch = {"x": torch.randn(8, 3, generator=torch.Generator().manual_seed(0))}
    for recipe in (plain, scaled):
        for net in recipe.nets.values():
            torch.nn.init.zeros_(net.bias)
        start = {name: net.weight.clone() for name, net in recipe.nets.items()}
        for _ in range(3):
            recipe.step(batch, 0.0)
        moved = {name: float((net.weight - start[name]).norm().detach()) for name, net in recipe.nets.items()}
        assert 0.05 < moved["a"] < 0.16 and 0.05 < moved["b"] < 0.16 and not moved["c"], "three steps of 0.05 at most"
    for name in "abc":
        torch.testing.assert_close(plain.nets[name].weight, scaled.nets[name].weight)
    scaled.backward = lambda loss: (scaler.scale(loss) * math.inf).backward()
    before = scaled.nets["a"].weight.clone()
    scaled.step(batch, 0.0)
    assert torch.equal(scaled.nets["a"].weight, before) and scaler.get_scale() == 2.0**15, "an overflow is one, not two"


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.123.tmp").write_bytes(b"half")
    run(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.slow
def test_two_processes_see_the_same_number_of_images_and_one_writes(tmp_path: Path) -> None:
    done = launch([HERE / "loop_worker.py", tmp_path / "two"], n_processes=2)
    assert done.returncode == 0, done.stderr
    run(tmp_path / "one", steps=LOOP.steps, log_every=LOOP.log_every)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [(x["step"], x["images_seen"]) for x in one] == [(x["step"], x["images_seen"]) for x in two]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["checkpoint.pt", "done.json", "stats.jsonl"]
    assert "ranks agree" in done.stdout
