"""Where a loaded model computes: this process's own GPU if there is one."""

from __future__ import annotations

import os

import torch
from accelerate.utils import parse_flag_from_env


def compute_device() -> torch.device:
    """Returns this process's GPU (by LOCAL_RANK under a launcher), or the CPU without one or by ACCELERATE_USE_CPU."""
    if not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


CACHED = 1 << 18
"""Values that a CPU works through at a time: an RGB image of 256 px. More would fall out of its cache."""


def rows_at_a_time(images: torch.Tensor) -> int:
    """Returns how many of images (B, C, H, W) long chains of operations should take at a time: as many as a CPU caches.

    On other devices all of them.
    """
    return max(1, len(images) if images.device.type != "cpu" else CACHED // max(1, images.shape[1:].numel()))
