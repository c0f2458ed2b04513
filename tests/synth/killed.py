"""Runs a job whole, then again in another folder with kill -9 at random moments, and says how both ended.

    python killed.py JOB FOLDER      JOB: loop | draw | fit | translate

Leaves FOLDER/whole and FOLDER/killed, prints JSON.

Each attempt is a forked process of its own; forking after the imports makes it cheap.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets  # noqa: F401 - as all imports: before the fork, or an attempt would spend its time on them
import numpy as np
import torch
from phantom import make_phantom
from tiny import FIT, half_strict, squares, tiny_appearance, tiny_pipeline
from torch import nn

import synth
from synth.core.loop import Batch, LoopSettings, Recipe, cosine, train
from synth.core.pairs import memory_set

N_KILLS = 4


class Line(Recipe):
    """Fits a line with dropout: noise that must not depend on interruptions. Sleeps, so that it can be interrupted."""

    def __init__(self, *, pause: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pause = pause
        self.nets["line"] = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.optimizers["line"] = torch.optim.AdamW(self.nets["line"].parameters(), lr=0.05)
        self.averages["line"] = synth.core.ema.Ema(self.nets["line"], decay=0.9)
        self.seen_lr: list[float] = []
        self.bank = torch.zeros(())

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Updates the line on x (B, 3) and y (B, 1); returns the scalar loss."""
        time.sleep(self.pause)
        self.seen_lr.append(self.optimizers["line"].param_groups[0]["lr"])
        loss = (self.nets["line"](batch["x"]) - batch["y"]).square().mean()
        self.optimizers["line"].zero_grad()
        self.backward(loss)
        self.optimizers["line"].step()
        self.averages["line"].update(self.nets["line"])
        self.bank = self.bank + loss.detach()
        return {"loss": loss.detach(), "bank": self.bank}

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns the rows of the batch."""
        return {"images_seen": len(batch["x"]), "unlabelled_seen": 2 * len(batch["x"])}

    def lr_factor(self, progress: float) -> float:
        """Returns warm-up, then cosine."""
        return cosine(progress)

    def extra_state(self) -> dict:
        """Returns the sum of all losses."""
        return {"bank": self.bank}

    def load_extra_state(self, state: dict) -> None:
        """Restores it."""
        self.bank = state["bank"]


def line_batches(step: int, rank: int, n_ranks: int) -> Batch:
    """Returns x (8 / n_ranks, 3) and y (8 / n_ranks, 1)."""
    rng = np.random.default_rng(step)
    x = torch.from_numpy(rng.standard_normal((8, 3)).astype(np.float32))[rank::n_ranks]
    return {"x": x, "y": x.sum(1, keepdim=True)}


LOOP = LoopSettings(steps=50, log_every=3, checkpoint_every=7)


def loop_job(out: Path) -> None:
    """Trains the line, 20 ms a step."""
    train(Line(pause=0.02), line_batches, out, LOOP)


def draw_job(out: Path) -> None:
    """Draws 24 pairs in twelve shards, about half of the candidates rejected."""
    pairs = squares(6)
    synth.draw(tiny_pipeline(), pairs, n=24, seed=5, gates=half_strict(pairs), out=out,
               config={"shard_size": 2, "batch_size": 2, "max_tries": 8})


def fit_job(out: Path) -> None:
    """Fits a tiny generator on labelled and unlabelled images."""
    pile = make_phantom(4, size=32, seed=7)
    unlabelled = memory_set([p.image for p in pile], None, pile.info, ids=[f"u{i}" for i in range(4)],
                            groups=["u"] * 4)
    synth.fit(FIT, make_phantom(6, size=32), unlabelled, out=out)


def translate_job(out: Path) -> None:
    """Translates 24 images four times each, in eight shards."""
    synth.translate_images(tiny_appearance(), squares(24), n=4, seed=5, out=out)


JOBS: dict[str, Callable[[Path], None]] = {"loop": loop_job, "draw": draw_job, "fit": fit_job,
                                           "translate": translate_job}


def start(job: Callable[[Path], None], out: Path) -> int:
    """Returns the process id of `job(out)`."""
    pid = os.fork()
    if pid:
        return pid
    try:
        job(out)
    except BaseException as error:  # noqa: BLE001 - a fork must not return into its parent's code
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Runs the job both ways."""
    job, folder = JOBS[sys.argv[1]], Path(sys.argv[2])
    torch.set_num_threads(1)
    begun = time.perf_counter()
    codes = [os.waitpid(start(job, folder / "whole"), 0)[1]]
    seconds, hits = time.perf_counter() - begun, 0
    delays = [random.uniform(0.15, 0.45) * seconds for _ in range(N_KILLS)]
    for delay in delays:
        pid = start(job, folder / "killed")
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        hits += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    codes.append(os.waitpid(start(job, folder / "killed"), 0)[1])
    sys.stdout.write(json.dumps({"codes": codes, "hits": hits, "seconds": seconds, "delays": delays}) + "\n")


if __name__ == "__main__":
    main()
