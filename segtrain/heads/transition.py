"""Which class each pixel's pseudo-label may stand for: a transition matrix for every pixel."""

from __future__ import annotations

import torch
from torch import nn

from segtrain.heads.sizes import Sizes
from synth.core.config import Settings

SURE = 4.0
"""Logit of the diagonal at the start, so that the first matrices are nearly the identity."""


class Transition(nn.Module):
    """What the labeller says of a pixel, and how often its word stands for what -> a matrix of that pixel."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.linear = nn.Conv2d(2 * n_classes, n_classes**2, 1)
        nn.init.normal_(self.linear.weight, std=1e-2)
        with torch.no_grad():
            self.linear.bias.copy_(SURE * torch.eye(n_classes).flatten())

    def forward(self, prob: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Returns matrices (B, K, K, H, W): [:, i, j] = P(labelled j | is i); each i sums to 1 over j.

        `prob` (B, K, H, W) is the labeller's word, `shares` (B, K, H, W) the class matrix's row that belongs to it.
        """
        logits = self.linear(torch.cat([prob, shares], dim=1))
        return logits.unflatten(1, (self.n_classes, self.n_classes)).softmax(dim=2)


class TransitionHead(Settings):
    """Slot member `transition`: linear in the labeller's probabilities and in its row of the class matrix."""

    def __call__(self, sizes: Sizes) -> nn.Module:
        """Returns a head whose matrices are nearly the identity."""
        return Transition(sizes.n_classes)
