"""The denoiser's network as a machine runs it: in which precision, compiled or as it is. Nothing of it is fitted."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch._dynamo.exc import BackendCompilerFailed

from synth.core.checks import UserError
from synth.diffusion.settings import Precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast computes in; "no" has none."""


def precision_on(precision: Precision, device: torch.device) -> Literal["no", "bf16", "fp16"]:
    """Returns the precision that `precision` means on `device`: "auto" is bf16 on GPUs made for it, else float32.

    On a CPU the casts cost more than bf16 saves, and float32 keeps what is drawn there byte for byte.
    """
    if precision != "auto":
        return precision
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if gains else "no"


class Network:
    """Stands in for a UNet2DModel where images are drawn: float32 in, float32 out, the network alone in autocast.

    A compiled batch is filled up to a power of two with copies of its last row. So each size has one kernel, made for
    it alone, and up to 128 rows there are no more sizes than the compiler keeps (8). With more, or with sizes left
    open, a batch's last bits could depend on which ones came before it, and so on where a run was interrupted.

    Args:
        precision: as `precision_on` returns it.
    """

    def __init__(self, unet: UNet2DModel, *, precision: Literal["no", "bf16", "fp16"], compiled: bool) -> None:
        self.unet, self.precision, self.compiled = unet, precision, compiled
        self.run = torch.compile(unet, dynamic=False) if compiled else unet

    @property
    def config(self) -> FrozenDict:
        """Configuration of the network."""
        return self.unet.config

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor) -> UNet2DOutput:
        """Returns what the network makes of `sample` (B, C, h, w) at `timestep` (B,), float32.

        Raises:
            UserError: if this machine cannot compile it.
        """
        n, context = len(sample), nullcontext()
        if self.precision != "no":
            context = torch.autocast(sample.device.type, DTYPES[self.precision])
        if self.compiled:
            rows = torch.arange(1 << (n - 1).bit_length(), device=sample.device).clamp(max=n - 1)
            # One layout in memory, too: the samplers' tensors have the one or the other, and each has a kernel.
            sample, timestep = sample[rows].contiguous(memory_format=torch.channels_last), timestep[rows]
        try:
            with context:
                out = self.run(sample, timestep).sample
        except BackendCompilerFailed as error:
            raise UserError("compile=true", rule=f"this machine cannot compile ({str(error).splitlines()[0]})",
                            repair="install a C++ compiler (and triton for a GPU), or write compile=false") from error
        return UNet2DOutput(sample=out[:n].float())
