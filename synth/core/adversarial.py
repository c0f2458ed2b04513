"""The hinge losses of a discriminator and of what it judges."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Returns the discriminator's scalar hinge loss of logits of any shape (Lim & Ye 2017, halved)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def fooling_loss(fake: torch.Tensor) -> torch.Tensor:
    """Returns the generator's scalar part of the hinge loss, for logits of any shape."""
    return -fake.mean()
