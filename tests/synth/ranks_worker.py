"""Runs `synth WORDS` or `segtrain WORDS` under accelerate; fails if a run ends with other weights on another process.

Fails, too, if another than the main process saves a pipeline, or does not wait until it is saved.

    python ranks_worker.py synth|segtrain WORDS
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather
from diffusers import DiffusionPipeline

from synth import pipelines
from synth.core import loop

end, save = loop._unwrap, pipelines.save_pipeline


def compare(recipe: loop.Recipe, accelerator: Accelerator) -> None:
    """Ends the run as ever, once all processes' networks and averages are found equal."""
    nets = {**recipe.nets, **{f"average of {k}": a.net for k, a in recipe.averages.items()}}
    for name, net in nets.items():
        flat = torch.cat([p.detach().flatten() for p in net.parameters()])
        every = gather(flat[None].contiguous())
        assert len(every) == 2 and torch.equal(every[0], every[1]), f"{name} differs between the processes"
    if accelerator.is_main_process:
        sys.stdout.write(f"{len(nets)} networks agree\n")
    end(recipe, accelerator)


def save_late(pipeline: DiffusionPipeline, out: Path) -> None:
    """Saves as ever, but so late that a process which does not wait finds nothing to load."""
    assert PartialState().is_main_process, "all processes save at once"
    time.sleep(2)
    save(pipeline, out)


loop._unwrap, pipelines.save_pipeline = compare, save_late
package, sys.argv = sys.argv[1], sys.argv[1:]
import_module(f"{package}.cli").main()
