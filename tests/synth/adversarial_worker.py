"""Trains a tiny autoencoder with its discriminator under accelerate; all ranks must end with the same weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate.utils import gather
from phantom import make_phantom
from tiny import AUTOENCODER

from synth.core.loop import LoopSettings, train
from synth.diffusion.autoencoder import autoencoder_recipe, build_autoencoder, image_batches

settings = AUTOENCODER.model_copy(update={"features": "random", "perceptual_weight": 0.5, "adversarial_weight": 0.5})
torch.manual_seed(0)
recipe = autoencoder_recipe(build_autoencoder(settings, channels=1, size=32), settings)
batches = image_batches(make_phantom(6, size=32).arrays(32), batch_size=4, seed=0, flip=True)
before = [p.detach().clone() for p in recipe.nets["discriminator"].parameters()]
train(recipe, batches, Path(sys.argv[1]), LoopSettings(steps=6, log_every=2, checkpoint_every=3))
for net in recipe.nets.values():
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    both = gather(flat[None].contiguous())
    assert len(both) == 2 and torch.equal(both[0], both[1])
assert any(not torch.equal(a, b) for a, b in zip(before, recipe.nets["discriminator"].parameters(), strict=True))
sys.stdout.write("ranks agree\n")
