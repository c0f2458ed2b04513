"""Runs `synth WORDS` or `segtrain WORDS` under accelerate; fails if a run ends with other weights on another process.

    python ranks_worker.py synth|segtrain WORDS
"""

from __future__ import annotations

import sys
from importlib import import_module

import torch
from accelerate import Accelerator
from accelerate.utils import gather

from synth.core import loop

end = loop._unwrap


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


loop._unwrap = compare
package, sys.argv = sys.argv[1], sys.argv[1:]
import_module(f"{package}.cli").main()
