"""Losses beside the hinge: OASIS's class-balanced segmentation, LabelMix, and a reward for answering to noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from synth.core.checks import IGNORE


def balanced_segmentation(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the class-balanced cross entropy (Schoenfeld et al. 2021, eq. 1 and 2, the real half), a scalar.

    The weight of a class is the inverse of its share of the pixels, so this is the sum, over the classes that the batch
    shows, of the mean cross entropy on their pixels.

    Args:
        logits: (B, K + 1, H, W). labels: (B, H, W) in 0..K-1; 255 does not count.
    """
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    total = logits.sum() * 0
    for k in labels[labels != IGNORE].unique():
        total = total + entropy[labels == k].mean()
    return total


def drawn_segmentation(logits: torch.Tensor) -> torch.Tensor:
    """Returns the scalar cross entropy of logits (B, K + 1, H, W) with "drawn", the last class, at every pixel."""
    return -F.log_softmax(logits, 1)[:, -1].mean()


def real_segmentation(logits: torch.Tensor) -> torch.Tensor:
    """Returns the scalar cross entropy of logits (B, K + 1, H, W) with "any real class" at every pixel.

    All that is known of an image without labels. Not in the paper; the unsupervised half of Salimans et al. 2016,
    section 5, pixel by pixel.
    """
    return F.softplus(-realness(logits)).mean()


def realness(logits: torch.Tensor) -> torch.Tensor:
    """Returns log p(any real class) / p(drawn) of logits (B, K + 1, H, W), (B, 1, H, W): high = real."""
    return logits[:, :-1].logsumexp(1, keepdim=True) - logits[:, -1:]


def draw_labelmix(labels: torch.Tensor) -> torch.Tensor:
    """Returns LabelMix's masks (B, 1, H, W) bool for labels (B, H, W): each class of each image by its own coin.

    Edges between real and drawn then lie where classes meet, and give nothing away (Schoenfeld et al. 2021, 3.2).
    """
    coins = torch.rand(len(labels), 256).to(labels.device) < 0.5
    return coins.gather(1, labels.flatten(1)).view_as(labels)[:, None]


def labelmix(real: torch.Tensor, fake: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns `real` where mask (B, 1, H, W) bool is True, `fake` elsewhere; both (B, C, H, W)."""
    return torch.where(mask, real, fake)


def labelmix_consistency(mixed: torch.Tensor, real: torch.Tensor, fake: torch.Tensor,
                         mask: torch.Tensor) -> torch.Tensor:
    """Returns the scalar mean square between the logits of a mix and the mix of the logits (eq. 4 there).

    Args:
        mixed, real, fake: logits (B, K + 1, H, W) of the mixed, real and drawn images. mask: (B, 1, H, W) bool.
    """
    return F.mse_loss(mixed, labelmix(real, fake, mask))


def noise_response(one: torch.Tensor, two: torch.Tensor, codes: tuple[torch.Tensor, torch.Tensor], *,
                   bound: float) -> torch.Tensor:
    """Returns how far two images of one mask differ for the distance of their codes, at most `bound`, a scalar.

    Yang et al. 2019, eq. 2, with the mean absolute difference for both distances. It is to be maximised: an L1 alone
    rewards the translator for not listening to its noise.

    Args:
        one, two: unit (B, C, H, W). codes: of either, (B, n).
    """
    apart = (one - two).abs().mean((1, 2, 3)) / ((codes[0] - codes[1]).abs().mean(1) + 1e-5)
    return apart.clamp(max=bound).mean()
