"""The one training loop. Recipes say what a step is; the loop counts, logs, saves, and resumes by running again."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pydantic import Field
from torch import nn
from tqdm.auto import tqdm

from synth.core.config import Settings, Word
from synth.core.ema import Ema
from synth.core.files import replace_through, sweep, write_json, write_text
from synth.core.rng import derive_seed

Batch = dict[str, torch.Tensor]
Batches = Callable[[int, int, int], Batch]
"""(step, rank, n_ranks) -> this rank's part of that step's batch. A pure function, so resuming needs no state."""


class LoopSettings(Settings):
    """How long and how to run; what is learnt belongs to the recipe."""

    steps: int = Field(1000, ge=1)
    seed: int = 0
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(200, ge=1)
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], Word] = "no"
    report_to: str | None = None


class Recipe(ABC):
    """How one thing is trained: owns networks, losses and optimisers.

    Attributes:
        nets: trained networks by name; the loop replaces them by their prepared (perhaps wrapped) form.
        optimizers: by name; the loop scales their initial learning rate by `lr_factor`.
        averages: exponential averages by name.
        backward, scaler: set by the loop; `descend` knows what to do with them.
    """

    def __init__(self) -> None:
        self.nets: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.averages: dict[str, Ema] = {}
        self.backward: Callable[[torch.Tensor], None] = lambda loss: loss.backward()
        self.scaler: torch.amp.GradScaler | None = None
        self.device = torch.device("cpu")

    @abstractmethod
    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Updates the networks once; returns scalars to log. `progress` is the share of the run done, in [0, 1)."""

    def descend(self, loss: torch.Tensor, *names: str, clip: float | None = None) -> None:
        """Moves the networks `names`, all of them if none is named, against the gradient of `loss`, a scalar.

        The gradient of each is first brought to a norm of at most `clip`; None = as it is. Networks that the loss does
        not reach stay.
        """
        moved = {name: self.optimizers[name] for name in names or self.optimizers}
        for optimizer in moved.values():
            optimizer.zero_grad(set_to_none=True)
        self.backward(loss)
        # Under a scaler: unscaled once, however many there are, and none without a gradient. accelerate's own wrapper
        # would end the scaler's step after the first, and the second would be unscaled twice.
        reached = {name: getattr(o, "optimizer", o) for name, o in moved.items()
                   if any(p.grad is not None for group in o.param_groups for p in group["params"])}
        if clip is not None:
            for name, optimizer in reached.items():
                if self.scaler is not None:
                    self.scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(self.nets[name].parameters(), clip)
        for optimizer in reached.values():
            optimizer.step() if self.scaler is None else self.scaler.step(optimizer)
        if self.scaler is not None and reached:
            self.scaler.update()

    @abstractmethod
    def count(self, batch: Batch) -> dict[str, int]:
        """Returns how many images of each kind the step on this batch looked at, e.g. {"images_seen": 16}.

        It is asked after that step.
        """

    def lr_factor(self, progress: float) -> float:
        """Returns the learning rate at `progress` as a share of the initial one."""
        return 1.0

    def extra_state(self) -> dict:
        """Returns what else must survive a restart (banks, thresholds): tensors, numbers, strings, lists, dicts."""
        return {}

    def load_extra_state(self, state: dict) -> None:  # noqa: B027 - a recipe without extra state has nothing to do
        """Restores what `extra_state` returned."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run did: counts as the loop counted them, seconds over all sittings."""

    steps: int
    counts: dict[str, int]
    seconds: float


def cosine(progress: float, *, warmup: float = 0.05) -> float:
    """Returns a linear warm-up over `warmup` of the run, then half a cosine down to 0."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def poly(progress: float, *, power: float = 0.9) -> float:
    """Returns (1 - progress)^power, the schedule of nnU-Net and SSL4MIS."""
    return (1 - progress) ** power


class _Run:
    """State of one run: step, counts, meters, seconds; written to and read from `checkpoint.pt`."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.step, self.seconds = 0, 0.0
        self.counts: dict[str, int] = {}
        self.meter: dict[str, float] = {}

    def save(self, *, final: bool) -> None:
        recipe = self.recipe
        state = {
            "step": self.step, "seconds": self.seconds, "counts": self.counts, "meter": self.meter,
            "nets": {k: getattr(n, "module", n).state_dict() for k, n in recipe.nets.items()},
            "averages": {k: a.state_dict() for k, a in recipe.averages.items()},
            # A finished run is never trained on: its moments would only fill the disk.
            "optimizers": {} if final else {k: o.state_dict() for k, o in recipe.optimizers.items()},
            "scaler": {} if final or recipe.scaler is None else recipe.scaler.state_dict(),
            "extra": recipe.extra_state(),
        }
        replace_through(self.out / "checkpoint.pt", lambda handle: torch.save(state, handle))

    def load(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.recipe.device)
        self.step, self.seconds, self.counts = state["step"], state["seconds"], state["counts"]
        self.meter = state["meter"]
        for name, net in self.recipe.nets.items():
            getattr(net, "module", net).load_state_dict(state["nets"][name])
        for name, average in self.recipe.averages.items():
            average.load_state_dict(state["averages"][name])
        for name, saved in state["optimizers"].items():
            self.recipe.optimizers[name].load_state_dict(saved)
        if self.recipe.scaler is not None and state.get("scaler"):
            self.recipe.scaler.load_state_dict(state["scaler"])
        self.recipe.load_extra_state(state["extra"])

    def trim_log(self) -> None:
        """Drops log lines past the checkpoint: the resumed run writes them again, the same bytes."""
        path = self.out / "stats.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
            write_text(path, "".join(whole))

    def add(self, scalars: dict[str, torch.Tensor], label: str) -> None:
        """Adds each scalar, of shape (), to the meter. Raises FloatingPointError if one is not finite."""
        # At every step, so that no checkpoint holds the weights that a loss of nan leaves behind.
        for key, value in ((k, float(v)) for k, v in scalars.items()):
            if not math.isfinite(value):
                rates = {g["initial_lr"] for o in self.recipe.optimizers.values() for g in o.param_groups}
                halves = "" if self.recipe.scaler is None else ", or write loop.mixed_precision=no"
                raise FloatingPointError(f"{label}: {key} is {value} at step {self.step + 1}; lower the learning rate "
                                         f"lr={max(rates):g}{halves}")
            self.meter[key] = self.meter.get(key, 0.0) + value

    def log(self, accelerator: Accelerator, every: int) -> None:
        values = torch.tensor(list(self.meter.values()), dtype=torch.float64, device="cpu") / every
        values = accelerator.reduce(values.float().to(accelerator.device), reduction="mean").tolist()
        means = {k: float(f"{v:.6g}") for k, v in zip(self.meter, values, strict=True)}
        line = {"step": self.step, **self.counts, **means}
        self.meter = {}
        if accelerator.is_main_process:
            with (self.out / "stats.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
        accelerator.log({k: v for k, v in line.items() if k != "step"}, step=self.step)


def _prepare(recipe: Recipe, accelerator: Accelerator) -> None:
    for name, optimizer in recipe.optimizers.items():
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        recipe.optimizers[name] = accelerator.prepare_optimizer(optimizer)
    for name, net in recipe.nets.items():
        recipe.nets[name] = accelerator.prepare_model(net)
    for average in recipe.averages.values():
        average.net.to(accelerator.device)
    recipe.backward, recipe.scaler, recipe.device = accelerator.backward, accelerator.scaler, accelerator.device


def _advance(run: _Run, batches: Batches, settings: LoopSettings, accelerator: Accelerator, label: str) -> None:
    recipe, rank = run.recipe, accelerator.process_index
    progress = run.step / settings.steps
    for optimizer in recipe.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * recipe.lr_factor(progress)
    # Every step has its own seed, so that dropout and noise do not depend on how often the run was interrupted.
    torch.manual_seed(derive_seed(settings.seed, "step", run.step, rank))
    batch = {k: v.to(accelerator.device) for k, v in batches(run.step, rank, accelerator.num_processes).items()}
    run.add(recipe.step(batch, progress), label)
    for key, n in recipe.count(batch).items():
        run.counts[key] = run.counts.get(key, 0) + n * accelerator.num_processes
    run.step += 1


def _unwrap(recipe: Recipe, accelerator: Accelerator) -> None:
    for name, net in recipe.nets.items():
        recipe.nets[name] = accelerator.unwrap_model(net, keep_fp32_wrapper=False)


def _accelerator(out: Path, settings: LoopSettings) -> Accelerator:
    AcceleratorState._reset_state()  # else the first run's precision would be that of all runs of this process
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, log_with=settings.report_to, project_dir=out)
    if settings.report_to:
        accelerator.init_trackers("pairsmith", config=settings.model_dump())
    return accelerator


def train(recipe: Recipe, batches: Batches, out: Path, settings: LoopSettings, *, label: str = "train") -> TrainResult:
    """Returns the counts of a finished run; `recipe` then holds the trained networks.

    Running the same command again resumes from `out/checkpoint.pt`; on a CPU the resumed `out/stats.jsonl` equals
    the uninterrupted one byte for byte. Works under `accelerate launch` with any number of processes.

    Raises:
        FloatingPointError: if a scalar of a step is not finite, naming it and the step.
    """
    out = Path(out)
    accelerator = _accelerator(out, settings)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        sweep(out)
    accelerator.wait_for_everyone()
    _prepare(recipe, accelerator)
    run = _Run(recipe, out)
    run.load()
    if accelerator.is_main_process:
        run.trim_log()
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    # Closed by an error too, or the bar would be drawn once more behind what is said of it.
    with tqdm(total=settings.steps, initial=run.step, desc=label, disable=not accelerator.is_main_process,
              mininterval=5, dynamic_ncols=True) as bar:
        while run.step < settings.steps:
            _advance(run, batches, settings, accelerator, label)
            bar.update()
            last = run.step == settings.steps
            if run.step % settings.log_every == 0 or last:
                run.log(accelerator, (run.step - 1) % settings.log_every + 1)
            if run.step % settings.checkpoint_every == 0 or last:
                now = time.perf_counter()
                run.seconds, started = run.seconds + now - started, now
                if accelerator.is_main_process:
                    run.save(final=last)
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    _unwrap(recipe, accelerator)
    result = TrainResult(run.step, run.counts, run.seconds)
    if accelerator.is_main_process:
        write_json(out / "done.json", {"steps": result.steps, "counts": result.counts, "seconds": result.seconds})
    return result
