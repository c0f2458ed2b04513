"""The network that looks for the seam: trained on placebos to say of every pixel whether it was kept or painted."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import nn

from synth.core.config import Settings
from synth.core.loop import Batch, Batches, LoopSettings, Recipe, cosine, train
from synth.core.rng import derive_seed, one_thread, sample_rng

DETAIL_GAIN = 8.0
"""What the difference from the 3 x 3 mean is multiplied by, so that it is about as large as the image itself."""


class SeamSettings(Settings):
    """How the seam is looked for.

    Attributes:
        widths: channels of the U-Net, from full resolution downwards. steps, batch_size, lr: of its training.
        folds: parts of the groups; each is held out once, while the others train.
        paint_batch: images painted together. n_resamples: of the bootstrap over groups.
        quantile, min_threshold: of the gate, see `fit_seam_probe`.
    """

    widths: tuple[PositiveInt, ...] = Field((8, 16, 32), min_length=1)
    steps: int = Field(400, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(3e-3, gt=0)
    folds: int = Field(2, ge=2)
    seed: int = 0
    paint_batch: int = Field(16, ge=1)
    n_resamples: int = Field(2000, ge=100)
    quantile: float = Field(0.95, gt=0, le=1)
    min_threshold: float = Field(0.75, ge=0.5, le=1)


def _block(n_in: int, n_out: int) -> nn.Sequential:
    groups = max(g for g in (1, 2, 4, 8) if n_out % g == 0)
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=1, padding_mode="replicate", bias=False),
                   nn.GroupNorm(groups, n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class SeamNet(nn.Module):
    """A small U-Net at full resolution: a seam is a matter of single pixels, and a down-sampling door would lose it.

    It sees the image and, amplified, its difference from the local mean, where noise that was kept differs most from
    noise that a decoder drew.
    """

    def __init__(self, in_channels: int, *, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.in_channels, self.widths = in_channels, tuple(widths)
        finer = [2 * in_channels, *widths[:-1]]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(finer, widths, strict=True))
        self.up = nn.ModuleList(_block(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.head = nn.Conv2d(widths[0], 1, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logit that a pixel was kept, (B, H, W), of unit images (B, C, H, W) of any size."""
        local = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = torch.cat([images, DETAIL_GAIN * (images - local)], 1).contiguous(memory_format=torch.channels_last)
        skips: list[torch.Tensor] = []
        for i, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2, ceil_mode=True) if i else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        return self.head(x)[:, 0]


def build_seam_net(in_channels: int, *, widths: tuple[int, ...], seed: int) -> SeamNet:
    """Returns a network with fresh weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "seam weights"))
        return SeamNet(in_channels, widths=widths)


def balanced_loss(logits: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy of logits (B, H, W) with keep (B, H, W) bool, both sides of an image weighing alike.

    A placebo is a few per cent of the image; unweighted, "nothing was kept" would be a good answer for long.
    """
    share = keep.float().mean((1, 2), keepdim=True).clamp(1e-6, 1 - 1e-6)
    weight = torch.where(keep, 0.5 / share, 0.5 / (1 - share))
    return F.binary_cross_entropy_with_logits(logits, keep.float(), weight=weight)


class SeamRecipe(Recipe):
    """Trains a `SeamNet` on images (B, C, H, W) and their keep masks."""

    def __init__(self, net: SeamNet, *, lr: float) -> None:
        super().__init__()
        self.nets = {"seam": net}
        self.optimizers = {"seam": torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01, fused=True)}

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Returns {"loss": ()}, after one step on a batch of "images" (B, C, H, W) and "keep" (B, H, W)."""
        loss = balanced_loss(self.nets["seam"](batch["images"]), batch["keep"])
        self.descend(loss, "seam", clip=1.0)
        return {"loss": loss.detach()}

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns how many images the batch holds."""
        return {"images_seen": len(batch["images"])}

    def lr_factor(self, progress: float) -> float:
        """Returns the share of the initial learning rate: a warm-up, then half a cosine."""
        return cosine(progress)


def _turned(image: torch.Tensor, quarter: int, *, mirrored: bool) -> torch.Tensor:
    image = torch.rot90(image, quarter, (-2, -1))
    return image.flip(-1) if mirrored else image


def seam_batches(images: torch.Tensor, keep: torch.Tensor, *, batch_size: int, seed: int) -> Batches:
    """Returns batches of random rows of images (N, C, S, S) and keep (N, S, S), turned and mirrored at random."""
    def batches(step: int, rank: int, n_ranks: int) -> Batch:
        rng = sample_rng(seed, "seam batch", step, rank)
        rows = torch.randint(len(images), (max(1, batch_size // n_ranks),), generator=rng).tolist()
        turns = torch.randint(8, (len(rows),), generator=rng).tolist()
        pick = [(i, t % 4, t >= 4) for i, t in zip(rows, turns, strict=True)]
        return {"images": torch.stack([_turned(images[i], q, mirrored=m) for i, q, m in pick]),
                "keep": torch.stack([_turned(keep[i], q, mirrored=m) for i, q, m in pick])}

    return batches


def fit_seam_net(images: torch.Tensor, keep: torch.Tensor, out: Path, settings: SeamSettings, *,
                 label: str = "seam") -> SeamNet:
    """Returns a network fitted on unit images (N, C, S, S) and keep (N, S, S) bool, in `out` on the one loop."""
    net = build_seam_net(images.shape[1], widths=settings.widths, seed=settings.seed)
    recipe = SeamRecipe(net, lr=settings.lr)
    loop = LoopSettings(steps=settings.steps, seed=settings.seed, checkpoint_every=settings.steps)
    train(recipe, seam_batches(images, keep, batch_size=settings.batch_size, seed=settings.seed), out, loop,
          label=label)
    return recipe.nets["seam"].eval()


@torch.no_grad()
def seam_logits(net: SeamNet, images: torch.Tensor) -> torch.Tensor:
    """Returns the logits (N, H, W) of unit images (N, C, H, W), on the CPU; each image is computed alone.

    So a score does not depend on what else was in the batch, not even in its last digit.
    """
    device = next(net.parameters()).device
    with one_thread():
        return torch.cat([net(one.to(device)).float().cpu() for one in images.split(1)])
