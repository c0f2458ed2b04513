"""Losses of translation without pairs: least squares, masks without hidden texture, contrast of patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from synth.core.space import top_class


def least_squares_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Returns a discriminator's scalar least-squares loss of scores of any shape, 1 = real (Mao et al. 2017, eq. 9)."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def least_squares_fooling(fake: torch.Tensor) -> torch.Tensor:
    """Returns the generator's scalar part of it, for scores of any shape (eq. 9 there)."""
    return 0.5 * (fake - 1).square().mean()


def binarise(logits: torch.Tensor, *, noise: float) -> torch.Tensor:
    """Returns one-hot masks (B, K, H, W) of logits (B, K, H, W) with the gradient of their probabilities.

    Whoever draws an image from such a mask is told one class a pixel and nothing else; from probabilities it could
    read the image back, for the one who labels can hide it there (Chu et al. 2017). What is left to hide in, which
    way undecided pixels fall, is drowned by normal noise of standard deviation `noise` on the logits, from torch's
    own generator.
    """
    prob = (logits + noise * torch.randn_like(logits)).softmax(1)
    hard = F.one_hot(top_class(prob), prob.shape[1]).movedim(-1, 1).to(prob.dtype)
    return hard + (prob - prob.detach())


def draw_places(n: int, size: tuple[int, int], *, n_places: int) -> torch.Tensor:
    """Returns `n_places` places of a map of `size`, the same for no two, for each of n images, (n, P) int64."""
    total = size[0] * size[1]
    return torch.rand(n, total).argsort(1)[:, :min(n_places, total)]


def patch_nce(query: torch.Tensor, key: torch.Tensor, places: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Returns PatchNCE (Park et al. 2020, eq. 3 and 4), a scalar: each place is to be told from the image's others.

    With features that are all alike it is log P, with perfect ones 0.

    Args:
        query, key: features (B, C, h, w) of the translated and of the original; the key gets no gradient.
        places: (B, P) int64, indices into h * w.
    """
    index = places.to(query.device)[:, None].expand(-1, query.shape[1], -1)
    q, k = (F.normalize(x.flatten(2).gather(2, index), dim=1) for x in (query, key.detach()))
    logits = q.transpose(1, 2) @ k / temperature
    right = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), right.flatten())
