"""Views that paste boxes of other images with their own targets (BCP), and exact turns of whole images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from segtrain.targets.target import Target
from segtrain.transforms.turns import TurnSettings, turned, turned_back
from segtrain.transforms.warps import MixWarp, Rngs, Warp
from synth.core.config import Settings
from synth.core.rng import choice

if TYPE_CHECKING:
    from segtrain.scene import Scene


@dataclass(frozen=True)
class SplitWarp(MixWarp):
    """A mix whose target remembers which pixels were pasted."""

    def apply(self, target: Target) -> Target:
        """Returns `target` with the partner's pixels pasted, and these marked."""
        return replace(super().apply(target), pasted=self.pasted)


@dataclass(frozen=True)
class PasteWarp(Warp):
    """Pixels in `pasted` (B, H, W) bool come from images of another set, whose target is `donors`; the rest stay."""

    pasted: torch.Tensor
    donors: Target

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W), 0 where pixels of the other set lie: of these they say nothing."""
        pasted = self.pasted if values.ndim == 3 else self.pasted[:, None]
        return values.masked_fill(pasted, 0)

    def back(self, values: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns values (B, C, H, W) or (B, H, W) as they are, valid only where nothing was pasted."""
        return values, valid & ~self.pasted

    def apply(self, target: Target) -> Target:
        """Returns `target` with the donors' pasted, all its fields, and these pixels marked."""
        donors = self.donors
        return replace(
            target, prob=self._mix(donors.prob, target.prob), hard=self._mix(donors.hard, target.hard),
            weight=self._mix(donors.weight, target.weight), valid=self._mix(donors.valid, target.valid),
            pasted=self.pasted)

    def _mix(self, theirs: torch.Tensor | None, own: torch.Tensor | None) -> torch.Tensor | None:
        if own is None or theirs is None:
            return None
        return torch.where(self.pasted[:, None] if own.ndim == 4 else self.pasted, theirs, own)


def draw_places(rngs: Rngs) -> torch.Tensor:
    """Returns where a box lies (B, 2), down and across, each uniform in [0, 1) of the room it has."""
    return torch.stack([torch.rand(2, generator=rng, dtype=torch.float64) for rng in rngs])


def box_mask(places: torch.Tensor, size: tuple[int, int], side: float, device: torch.device) -> torch.Tensor:
    """Returns (B, H, W) bool, True in a box of the share `side` of each edge, at `places` (B, 2)."""
    found = []
    for axis, n in enumerate(size):
        length = int(n * side)
        start = (places[:, axis] * (n - length + 1)).long().to(device)[:, None]
        at = torch.arange(n, device=device)[None]
        found.append((at >= start) & (at < start + length))
    return found[0][:, :, None] & found[1][:, None, :]


class BoxSettings(Settings):
    """A box of the share `side` of each edge; two thirds are BCP's (Bai et al. 2023)."""

    side: float = Field(2 / 3, gt=0, le=1)


class CopyPaste(BoxSettings):
    """Slot member `copy_paste`: a box of the next image of the same batch, and its target."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns mixed images (B, C, H, W) and where their pixels came from."""
        pasted = box_mask(draw_places(rngs), tuple(images.shape[-2:]), self.side, images.device)
        warp = SplitWarp(pasted, torch.arange(len(images), device=images.device).roll(-1))
        return warp.move(images, nearest=True), warp


class Bcp(BoxSettings):
    """Slot member `bcp`: labelled pixels in unlabelled images, each with its own target (Bai et al. 2023, section 3).

    Attributes:
        inside: what the box shows: "labelled" in an unlabelled frame, or "unlabelled" in a labelled frame.
    """

    inside: Literal["labelled", "unlabelled"] = "labelled"

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns mixed images (U, C, H, W), a supervised one in each, and the warp that brings its labels."""
        box = box_mask(draw_places(rngs), tuple(images.shape[-2:]), self.side, images.device)
        pasted = box if self.inside == "labelled" else ~box
        given = scene.supervised
        # From a random one on, so that in a small unlabelled batch the last labelled images are not left out.
        rows = (choice(rngs[0], len(given.images)) + torch.arange(len(images))) % len(given.images)
        rows = rows.to(images.device)
        labels = scene.supervised_target()
        donors = Target(labels.prob[rows], labels.hard[rows], labels.weight[rows], labels.valid[rows])
        return torch.where(pasted[:, None], given.images[rows], images), PasteWarp(pasted, donors)


@dataclass(frozen=True)
class TurnWarp(Warp):
    """Square images turned by quarters."""

    turn: TurnSettings

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, S, S) or (B, S, S) turned; none changes."""
        return turned(values, self.turn)

    def back(self, values: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns values (B, C, S, S) or (B, S, S) and valid (B, S, S), turned back."""
        return turned_back(values, self.turn), turned_back(valid, self.turn)


class Turn(TurnSettings):
    """Slot member `turn`: the same exact turn of every image."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns turned images (B, C, S, S) and where their pixels came from."""
        return turned(images, self), TurnWarp(self)


MIXES: dict[str, type[Settings]] = {"copy_paste": CopyPaste, "bcp": Bcp, "turn": Turn}
"""Perturbations of this module by the name that method files use."""
