"""What appearance translation learns from: all training images with their styles, and the batches of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from synth.core.batches import rows_of
from synth.core.loop import Batch, Batches
from synth.core.rng import choice, sample_rng
from synth.gan.restyle.looks import Styles
from synth.gan.restyle.settings import AppearanceSettings


@dataclass(frozen=True)
class Pool:
    """Training images, the labelled ones first: unit (N, C, S, S), labels (L, S, S) int64, and their styles."""

    images: torch.Tensor
    labels: torch.Tensor
    styles: Styles

    @property
    def known(self) -> torch.Tensor:
        """Which styles any labelled image shows, (K,) bool: of the others a segmenter knows nothing."""
        known = torch.zeros(len(self.styles.names), dtype=torch.bool)
        known[self.styles.of_image[:len(self.labels)]] = True
        return known


def restyle_batches(pool: Pool, settings: AppearanceSettings) -> Batches:
    """Returns batches: images (B, C, S, S), the first half labelled, labels (B / 2, S, S), style and target (B,).

    Labelled rows come in epochs. For the others a style is drawn first and then an image of it, so that a rare style
    is judged as often as a common one. A target is any style but the image's own.
    """
    seed, of_image = settings.loop.seed, pool.styles.of_image
    rows_of_style = [(of_image == k).nonzero().flatten().tolist() for k in range(len(pool.styles.names))]
    half = settings.batch_size // 2

    def batches(step: int, rank: int, n_ranks: int) -> Batch:
        labelled = rows_of(step, rank, n_ranks, n=len(pool.labels), batch_size=half, seed=seed)
        others, targets = [], []
        for i in range(2 * len(labelled)):
            rng = sample_rng(seed, "restyle", step, rank, i)
            if i >= len(labelled):
                mine = rows_of_style[choice(rng, len(rows_of_style))]
                others.append(mine[choice(rng, len(mine))])
            row = labelled[i] if i < len(labelled) else others[-1]
            targets.append(another_style(rng, int(of_image[row]), len(rows_of_style)))
        rows = [*labelled, *others]
        return {"images": pool.images[rows], "labels": pool.labels[labelled], "style": of_image[rows],
                "target": torch.tensor(targets)}

    return batches


def another_style(rng: torch.Generator, own: int, n: int) -> int:
    """Returns one of n styles, any but `own`."""
    return (own + 1 + choice(rng, n - 1)) % n
