"""The shape every network has here: encoder, decoder, last layer; so that methods can reach in between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from synth.core.checks import UserError

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
        deep: logits (B, K, h, w) of the decoder's further levels, fine to coarse; none unless the network has deep
            supervision and trains.
    """

    logits: torch.Tensor
    hidden: torch.Tensor
    coarse: torch.Tensor
    deep: tuple[torch.Tensor, ...] = ()

    def split(self, rows: Sequence[int]) -> list[Seen]:
        """Returns what was seen of the first rows[0] images (B, C, H, W), of the next rows[1], ..."""
        if len(rows) == 1:
            return [self]
        deep = list(zip(*(level.split(rows) for level in self.deep), strict=True)) or [()] * len(rows)
        pieces = zip(self.logits.split(rows), self.hidden.split(rows), self.coarse.split(rows), deep, strict=True)
        return [Seen(*piece) for piece in pieces]


def join(parts: Sequence[Seen]) -> Seen:
    """Returns what was seen of several groups of images as one."""
    if len(parts) == 1:
        return parts[0]
    deep = tuple(torch.cat(level) for level in zip(*(part.deep for part in parts), strict=True))
    return Seen(torch.cat([p.logits for p in parts]), torch.cat([p.hidden for p in parts]),
                torch.cat([p.coarse for p in parts]), deep)


@dataclass(frozen=True)
class Widths:
    """Channels of `Seen.hidden` and of `Seen.coarse`; latent numbers behind one mask, 0 if the network draws none."""

    hidden: int
    coarse: int
    latent: int = 0


class SegNet(nn.Module):
    """A segmentation network of three parts, perhaps with further decoders on the one encoder.

    Args:
        encoder: unit images (B, C, H, W) -> Features. decoder: Features -> (B, D, h, w). head: that -> logits
            (B, K, H, W). stride: divides every side it takes. widths: of what lies between.

    Attributes:
        n_decoders: 1 + those that `add_decoders` added.
        deep: for each decoder, one head on each of its further levels; empty without deep supervision.
        door: what unit images go through before the encoder, or None.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module, *, stride: int, widths: Widths) -> None:
        super().__init__()
        self.encoder, self.decoders, self.heads = encoder, nn.ModuleList([decoder]), nn.ModuleList([head])
        self.stride, self.widths = stride, widths
        self.deep, self.door = nn.ModuleList(), None

    @property
    def n_decoders(self) -> int:
        """How many decoders read the encoder."""
        return len(self.decoders)

    def add_decoders(self, n: int) -> SegNet:
        """Returns itself with `n` more decoders of the same form, their weights drawn anew from torch's seed."""
        for _ in range(n):
            for parts in (self.decoders, self.heads, *([self.deep] if len(self.deep) else [])):
                twin = copy.deepcopy(parts[0])
                twin.apply(_reset)
                parts.append(twin)
        return self

    def supervise_deeply(self, n_classes: int) -> SegNet:
        """Returns itself with a head on every further level of its decoder, which then offers `Seen.deep` in training.

        Raises:
            UserError: if the decoder has no further level.
        """
        make = getattr(self.decoders[0], "deep_heads", None)
        heads = make(n_classes) if make else []
        if not heads:
            raise UserError("model.deep_supervision", rule="this network's decoder has one level alone",
                            repair="give model.channels more widths, or take model.name=unet")
        self.deep = nn.ModuleList([nn.ModuleList(heads)])
        return self

    def main(self) -> SegNet:
        """Returns the network that predicts, the same tensors: the encoder, the first decoder and its head.

        Heads of further levels stay where a prediction may choose between them, with nested decoders.
        """
        chosen = len(self.deep) > 0 and hasattr(self.decoders[0], "shallow")
        if self.n_decoders == 1 and (chosen or not len(self.deep)):
            return self
        net = self._of(self.encoder, self.decoders[0], self.heads[0])
        net.deep = nn.ModuleList([self.deep[0]]) if chosen else net.deep
        return net

    def at_depth(self, depth: int) -> SegNet:
        """Returns the network of the nested decoder of that depth alone, the same tensors; 0 = the deepest.

        Raises:
            UserError: if this network has no trained decoder of that depth.
        """
        decoder = self.decoders[0]
        deepest = len(self.deep[0]) + 1 if len(self.deep) and hasattr(decoder, "shallow") else 0
        if depth in (0, deepest):
            return self
        if depth > deepest:
            raise UserError(f"model.depth {depth}", rule=f"this network has decoders of depth 1 to {deepest}"
                            if deepest else "this network's shallower decoders are not trained, or it has none",
                            repair="take model.name=unetpp with model.deep_supervision=true, or leave depth out")
        return self._of(*decoder.shallow(self.encoder, depth), self.deep[0][deepest - depth - 1])

    def _of(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module) -> SegNet:
        net = SegNet(encoder, decoder, head, stride=self.stride, widths=self.widths)
        net.door = self.door
        return net.train(self.training)

    def forward(self, images: torch.Tensor, parts: Sequence[Part] | None = None) -> torch.Tensor | Seen:
        """Returns logits (B, K, H, W) of unit images (B, C, H, W), or, for `parts`, all that was seen, row by row.

        The rows of all parts go through the encoder together.
        """
        features = self.encoder(images if self.door is None else self.door(images))
        if parts is None:
            return self.heads[0](self.decoders[0](features))
        decoders = sorted({part.decoder for part in parts})
        if len(decoders) == 1 and not any(part.perturb for part in parts):
            return self._decode(decoders[0], features)
        rows = [part.rows for part in parts]
        split = [list(f) for f in zip(*(level.split(rows) for level in features), strict=True)]
        split = [part.perturb(some) if part.perturb else some for part, some in zip(parts, split, strict=True)]
        found: dict[int, Seen] = {}
        for index in decoders:
            mine = [i for i, part in enumerate(parts) if part.decoder == index]
            seen = self._decode(index, [torch.cat(level) for level in zip(*(split[i] for i in mine), strict=True)])
            found |= dict(zip(mine, seen.split([rows[i] for i in mine]), strict=True))
        return join([found[i] for i in range(len(parts))])

    def _decode(self, index: int, features: Features) -> Seen:
        decoder, deep = self.decoders[index], ()
        if len(self.deep) and self.training:
            hidden, *further = decoder.levels(features)
            deep = tuple(head(level) for head, level in zip(self.deep[index], further, strict=True))
        else:
            hidden = decoder(features)
        return Seen(self.heads[index](hidden), hidden, features[-1], deep)


def _reset(module: nn.Module) -> None:
    frozen = not any(p.requires_grad for p in module.parameters())
    if hasattr(module, "reset_parameters") and not frozen:
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


def at_depth(net: nn.Module, depths: Sequence[int]) -> nn.Module:
    """Returns a network, or an ensemble of several, each cut at its nested decoder of that depth; 0 = the deepest.

    Raises:
        UserError: if one of them has no trained decoder of that depth.
    """
    if not any(depths):
        return net
    if isinstance(net, Ensemble):
        return Ensemble([member.at_depth(depth) for member, depth in zip(net.members, depths, strict=True)])
    return net.at_depth(depths[0])
