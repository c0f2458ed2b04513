"""The optimisers of a segmenter's networks."""

from __future__ import annotations

import torch
from torch import nn

from segtrain.settings import ModelSettings, SegmentSettings


def make_optimizer(net: nn.Module, settings: SegmentSettings, model: ModelSettings | None = None
                   ) -> torch.optim.Optimizer:
    """Returns the optimiser of a network; an encoder that starts from given weights has a learning rate of its own."""
    optim = settings.optim
    groups: list[dict] = [{"params": list(net.parameters())}]
    if model is not None and model.weights:
        given = {id(p) for p in net.encoder.parameters()}
        groups = [{"params": [p for p in net.parameters() if id(p) not in given]},
                  {"params": list(net.encoder.parameters()), "lr": optim.lr * optim.encoder_lr}]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay,
                               nesterov=optim.nesterov, fused=True)
    # Fused: a step of a hundred small tensors costs as much as a tenth of the network's, one by one, on a CPU.
    return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
