"""The shape every network has here: encoder, decoder, last layer; so that methods can reach in between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

Features = list[torch.Tensor]
"""What an encoder saw, (B, c, h, w) each, from fine to coarse."""


@dataclass(frozen=True)
class Part:
    """Some rows of one forward.

    Attributes:
        rows: how many. decoder: which decoder reads them. perturb: changes their features before it does.
    """

    rows: int
    decoder: int = 0
    perturb: Callable[[Features], Features] | None = None


@dataclass(frozen=True)
class Seen:
    """What a network made of some images.

    Attributes:
        logits: (B, K, H, W). hidden: what the last layer reads, (B, D, h, w). coarse: the encoder's last features,
            (B, E, h', w').
    """

    logits: torch.Tensor
    hidden: torch.Tensor
    coarse: torch.Tensor


@dataclass(frozen=True)
class Widths:
    """Channels of `Seen.hidden` and of `Seen.coarse`."""

    hidden: int
    coarse: int


class SegNet(nn.Module):
    """A segmentation network of three parts, perhaps with further decoders on the one encoder.

    Args:
        encoder: unit images (B, C, H, W) -> Features. decoder: Features -> (B, D, h, w). head: that -> logits
            (B, K, H, W). stride: divides every side it takes. widths: of what lies between.

    Attributes:
        n_decoders: 1 + those that `add_decoders` added.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module, *, stride: int, widths: Widths) -> None:
        super().__init__()
        self.encoder, self.decoders, self.heads = encoder, nn.ModuleList([decoder]), nn.ModuleList([head])
        self.stride, self.widths = stride, widths

    @property
    def n_decoders(self) -> int:
        """How many decoders read the encoder."""
        return len(self.decoders)

    def add_decoders(self, n: int) -> SegNet:
        """Returns itself with `n` more decoders of the same form, their weights drawn anew from torch's seed."""
        for _ in range(n):
            for parts in (self.decoders, self.heads):
                twin = copy.deepcopy(parts[0])
                twin.apply(_reset)
                parts.append(twin)
        return self

    def main(self) -> SegNet:
        """Returns the network of the encoder and the first decoder alone, the same tensors."""
        if self.n_decoders == 1:
            return self
        return SegNet(self.encoder, self.decoders[0], self.heads[0], stride=self.stride, widths=self.widths)

    def forward(self, images: torch.Tensor, parts: Sequence[Part] | None = None) -> torch.Tensor | Seen:
        """Returns logits (B, K, H, W) of unit images (B, C, H, W), or, for `parts`, all that was seen, row by row.

        The rows of all parts go through the encoder together.
        """
        features = self.encoder(images)
        if parts is None:
            return self.heads[0](self.decoders[0](features))
        rows = [part.rows for part in parts]
        split = [list(f) for f in zip(*(level.split(rows) for level in features), strict=True)]
        split = [part.perturb(some) if part.perturb else some for part, some in zip(parts, split, strict=True)]
        found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for index in sorted({part.decoder for part in parts}):
            mine = [i for i, part in enumerate(parts) if part.decoder == index]
            hidden = self.decoders[index]([torch.cat(level) for level in zip(*(split[i] for i in mine), strict=True)])
            sizes = [rows[i] for i in mine]
            found |= dict(zip(mine, zip(hidden.split(sizes), self.heads[index](hidden).split(sizes), strict=True),
                              strict=True))
        order = range(len(parts))
        return Seen(torch.cat([found[i][1] for i in order]), torch.cat([found[i][0] for i in order]),
                    torch.cat([split[i][-1] for i in order]))


def _reset(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


class Ensemble(nn.Module):
    """Several networks as one: the logarithm of their mean probability."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.stride = max(member.stride for member in members)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns log mean probabilities (B, K, H, W) of unit images (B, C, H, W)."""
        prob = torch.stack([member(images).float().softmax(dim=1) for member in self.members]).mean(dim=0)
        return prob.clamp_min(torch.finfo(prob.dtype).tiny).log()
