"""Exponential moving average of a network, buffers included.

diffusers' EMAModel averages parameters only; a teacher with batch norm needs the running statistics too.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A network whose parameters follow another's: p' <- a p' + (1 - a) p, a = min(decay, 1 - 1/(updates + 1)).

    The warm-up makes the average of few updates a plain mean (Tarvainen & Valpola 2017, released code), so that the
    untrained weights are soon forgotten. Buffers are copied.
    """

    def __init__(self, net: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, *nets: nn.Module) -> None:
        """Moves the average one step towards `net`, or the mean of several; they may be wrapped for data parallelism.

        Buffers are those of the first.
        """
        self.updates += 1
        decay = min(self.decay, 1 - 1 / (self.updates + 1))
        sources = [getattr(net, "module", net) for net in nets]
        mine = list(self.net.parameters())
        theirs = [p.detach() for p in sources[0].parameters()]
        if len(sources) > 1:
            others = zip(*(source.parameters() for source in sources), strict=True)
            theirs = [torch.stack([p.detach() for p in same]).mean(dim=0) for same in others]
        assert len(mine) == len(theirs), "an average follows networks of its own form"
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for own, other in zip(self.net.buffers(), sources[0].buffers(), strict=True):
            own.copy_(other)

    def state_dict(self) -> dict:
        """Returns the average and the number of updates."""
        return {"updates": self.updates, "net": self.net.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restores what `state_dict` returned."""
        self.updates = state["updates"]
        self.net.load_state_dict(state["net"])
