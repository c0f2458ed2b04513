"""Learning from labels that a known process has made wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from segtrain.targets.target import Target


def forward_corrected_ce(logits: torch.Tensor, target: Target, matrix: torch.Tensor) -> torch.Tensor:
    """Returns the mean over valid pixels (scalar) of -log (T^t p)_y, the cross-entropy behind a transition matrix.

    Logits are (B, K, H, W) of what is there, y the target's hard labels; `matrix` T is (B, K, K, H, W) or broadcasts
    to it, T[:, i, j] = P(labelled j | is i). T = identity gives plain cross-entropy. Patrini et al. 2017, eq. 4.
    """
    said = target.hard.masked_fill(~target.valid, 0)
    shape = (len(logits), *matrix.shape[1:3], *logits.shape[-2:])
    index = said[:, None, None].expand(-1, shape[1], 1, -1, -1)
    column = matrix.expand(shape).gather(2, index).squeeze(2)
    # In logarithms: a probability that rounds to 0 would have no gradient left to grow by.
    log = logits.float().log_softmax(dim=1) + column.clamp_min(torch.finfo(column.dtype).tiny).log()
    losses = -log.logsumexp(dim=1)
    return (losses * target.weight * target.valid).sum() / target.valid.sum().clamp(min=1)


def confusion(said: torch.Tensor, labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Returns counts (K, K): [i, j] = pixels of class i, by labels (B, H, W), of which `said` (B, H, W) is j; 255 is
    passed over."""
    counted = labels < n_classes
    index = labels[counted] * n_classes + said[counted]
    return torch.bincount(index, minlength=n_classes**2).view(n_classes, n_classes).double()


def rows_of(counts: torch.Tensor, fallback: torch.Tensor) -> torch.Tensor:
    """Returns counts (K, K) as shares of each row; a row without any is that of `fallback` (K, K)."""
    total = counts.sum(dim=1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1), fallback)


def one_hot_rows(matrix: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
    """Returns the row of `matrix` (K, K) that belongs to each class of `hard` (B, H, W), as (B, K, H, W)."""
    return F.embedding(hard, matrix).movedim(-1, 1)
