"""What the processes of one run tell each other, so that what they remember stays the same on all of them."""

from __future__ import annotations

import torch
from accelerate.utils import gather


def gathered(values: torch.Tensor) -> torch.Tensor:
    """Returns every process's values (n, ...) one after another; of one process its own."""
    return gather(values) if torch.distributed.is_available() and torch.distributed.is_initialized() else values


def summed(values: torch.Tensor) -> torch.Tensor:
    """Returns the sum over all processes of values of any shape."""
    return gathered(values[None]).sum(dim=0)
