"""Training loops as one would write them by hand, for training.py: no slots, no schedule of phases, no log.

They share with the package what is not machinery: the network, the losses, the augmentation functions, the average.
"""

from __future__ import annotations

import torch

from segtrain.losses import supervised
from segtrain.losses.supervised import soft_dice_loss
from segtrain.method import load_method
from segtrain.models import build_model
from segtrain.settings import SegmentSettings
from segtrain.transforms.intensity import apply_intensity, draw_intensity
from segtrain.views import augment_pairs, weak
from segtrain.views.basic import CutMix, Strong, apply_boxes, draw_boxes
from synth.core.checks import IGNORE
from synth.core.loop import Batch, poly
from synth.core.pairs import ImageSet, PairSet
from synth.core.space import pixels_to_unit

TAU = 0.95
DECAY = 0.99
"""Threshold and decay of configs/methods/fixmatch_ema.yaml, which a test holds them against."""


class Plain:
    """A supervised loop: a batch, a forward, a loss, a backward, a step."""

    def __init__(self, settings: SegmentSettings, labelled: PairSet, pile: ImageSet | None) -> None:
        arrays, model, optim = labelled.arrays(settings.size), settings.model, settings.optim
        self.settings, self.augment = settings, not settings.augment.intensity.is_still
        self.images = pixels_to_unit(arrays.images, labelled.info.intensity_range)
        self.labels = torch.from_numpy(arrays.masks).long()
        self.net = build_model(model.name, labelled.info.channels, labelled.info.n_classes, model,
                               seed=settings.loop.seed).train()
        encoder = list(self.net.encoder.parameters())
        known = {id(p) for p in encoder} if model.weights else set()
        groups = [{"params": [p for p in self.net.parameters() if id(p) not in known], "lr": optim.lr}]
        groups += [{"params": encoder, "lr": optim.lr * optim.encoder_lr}] if known else []
        self.optimizer = torch.optim.AdamW(groups, weight_decay=optim.weight_decay, fused=True)
        self.rates = [group["lr"] for group in groups]

    def batch(self, step: int, rank: int, n_ranks: int) -> Batch:
        """Returns random rows of the images (B, C, S, S) and labels (B, S, S)."""
        rows = torch.randint(len(self.images), (self.settings.batch_size,))
        return {"images": self.images[rows], "labels": self.labels[rows], "seeds": _seeds(len(rows))}

    def step(self, batch: Batch, progress: float) -> float:
        """Returns the loss of one update."""
        images, labels = self.labelled(batch)
        return self.update(supervised(self.net(images), labels), progress)

    def labelled(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the labelled images (B, C, S, S) and labels (B, S, S), augmented if the settings say so."""
        images, labels = batch["images"], batch["labels"]
        if not self.augment:
            return images, labels
        return augment_pairs(images, labels, _rngs(batch["seeds"]), self.settings.augment)

    def update(self, loss: torch.Tensor, progress: float) -> float:
        """Returns the loss (scalar) after the network has moved against its gradient."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * poly(progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class PlainFixMatch(Plain):
    """The same with FixMatch from an average teacher, as configs/methods/fixmatch_ema.yaml has it."""

    def __init__(self, settings: SegmentSettings, labelled: PairSet, pile: ImageSet | None) -> None:
        super().__init__(settings, labelled, pile)
        model, info = settings.model, labelled.info
        self.unlabelled = pixels_to_unit(pile.arrays(settings.size).images, info.intensity_range)
        self.teacher = build_model(model.name, info.channels, info.n_classes, model).eval().requires_grad_(False)
        self.teacher.load_state_dict(self.net.state_dict())
        self.ramp, self.n_updates = load_method("fixmatch_ema").lambda_u, 0

    def batch(self, step: int, rank: int, n_ranks: int) -> Batch:
        """Returns random rows of the labelled and of the unlabelled images (B, C, S, S)."""
        rows = torch.randint(len(self.unlabelled), (self.settings.unlabelled_batch_size,))
        return {**super().batch(step, rank, n_ranks), "unlabelled": self.unlabelled[rows],
                "unlabelled_seeds": _seeds(len(rows))}

    def step(self, batch: Batch, progress: float) -> float:
        """Returns the loss of one update."""
        images, labels = self.labelled(batch)
        clean, strong = batch["unlabelled"], batch["unlabelled"]
        if self.augment:
            clean = strong = weak(clean, _rngs(batch["unlabelled_seeds"]), self.settings.augment.geometry)[0]
        with torch.no_grad():
            confidence, pseudo = self.teacher(clean).softmax(1).max(1)
            pseudo = pseudo.masked_fill(confidence < TAU, IGNORE)
            if self.augment:
                rngs = _rngs(batch["unlabelled_seeds"] + 1)
                strong = apply_intensity(clean, draw_intensity(rngs, Strong()))
                strong, warp = apply_boxes(strong, draw_boxes(rngs, CutMix()))
                pseudo = warp.move(pseudo, nearest=True)
        seen, others = self.net(torch.cat([images, strong])).split([len(images), len(strong)])
        weight = self.ramp.at(progress, self.settings.loop.steps)
        of_pile = soft_dice_loss(others, pseudo, present_only=True) * (pseudo != IGNORE).float().mean()
        loss = self.update(supervised(seen, labels) + weight * of_pile, progress)
        self.follow()
        return loss

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the teacher towards the network."""
        self.n_updates += 1
        share = 1 - min(DECAY, 1 - 1 / (self.n_updates + 1))
        torch._foreach_lerp_(list(self.teacher.parameters()), [p.detach() for p in self.net.parameters()], share)
        for own, other in zip(self.teacher.buffers(), self.net.buffers(), strict=True):
            own.copy_(other)


def _seeds(n: int) -> torch.Tensor:
    return torch.randint(2**62, (n,))


def _rngs(seeds: torch.Tensor) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


PLAIN: dict[str, type[Plain]] = {"supervised": Plain, "fixmatch_ema": PlainFixMatch}
"""Plain loops by the method they compute."""
