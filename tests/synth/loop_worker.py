"""Trains the line of `killed.py` under accelerate and checks that all ranks end with the same weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate.utils import gather
from killed import LOOP, Line, line_batches

from synth.core.loop import train

recipe = Line()
train(recipe, line_batches, Path(sys.argv[1]), LOOP)
weights = gather(recipe.nets["line"][0].weight.detach()[None].contiguous())
assert len(weights) == 2 and torch.equal(weights[0], weights[1])
sys.stdout.write("ranks agree\n")
