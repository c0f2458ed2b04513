"""Several plausible masks of one image: drawn, measured against those of raters, and written as a source of layouts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from segtrain.models.probabilistic import Plausible
from segtrain.models.segnet import Part, SegNet
from segtrain.segmenter import CHUNK, Segmenter
from segtrain.streams.patches import predict_tiles
from synth.core.checks import IGNORE, UserError
from synth.core.pairs import ImageSet, PairSet, memory_set
from synth.core.rng import sample_rng
from synth.core.space import pixels_to_unit, to_channels, top_class
from synth.core.taught import joined
from synth.formats import write_folder


@torch.no_grad()
def sample_masks(segmenter: Segmenter, images: torch.Tensor, *, n: int, rngs: Sequence[torch.Generator]
                 ) -> torch.Tensor:
    """Returns n plausible masks of each image as probabilities (B, n, K, H, W); their mean is its probability.

    A segmenter of tiles draws tile by tile, each mask from the same latent numbers in all tiles of an image.

    Args:
        images: unit (B, C, H, W), of any size. rngs: one for each image; its masks depend on it and the image alone.

    Raises:
        UserError: if the segmenter's network says one thing about an image.
    """
    net = segmenter.net
    if not isinstance(net, SegNet) or not isinstance(net.heads[0], Plausible):
        raise UserError("samples", rule="this segmenter draws no masks, it says one thing of an image", repair="train"
                        " one with method=pulaski")
    noise = torch.stack([torch.randn((n, net.heads[0].latent), generator=rng) for rng in rngs])
    images = images.to(next(net.parameters()).device)
    if segmenter.config.tiles:
        drawn = [predict_tiles(partial(_draw, net, noise=own[None]), image[None], side=segmenter.size, chunk=CHUNK)
                 for image, own in zip(images, noise, strict=True)]
        return torch.cat(drawn).unflatten(1, (n, -1)).cpu()
    native, size = images.shape[-2:], (segmenter.size, segmenter.size)
    if native != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    prob = _draw(net, images, noise=noise)
    if native != size:
        prob = F.interpolate(prob, native, mode="bilinear", align_corners=False)
    return prob.unflatten(1, (n, -1)).cpu()


def _draw(net: SegNet, images: torch.Tensor, *, noise: torch.Tensor) -> torch.Tensor:
    # The n masks of each image, one after the other, (B, n * K, H, W), for noise (B or 1, n, L).
    logits = net.heads[0].draw(net(images, [Part(len(images))]).hidden, noise)
    return logits.float().softmax(dim=2).flatten(1, 2)


def uncertainty(prob: torch.Tensor) -> torch.Tensor:
    """Returns the entropy (B, H, W), nats, of the mean of plausible masks (B, N, K, H, W): where raters may differ."""
    mean = prob.mean(dim=1)
    return -torch.xlogy(mean, mean).sum(dim=1)


def _distances(a: torch.Tensor, b: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Returns 1 - IoU (N, M) of labels (N, H, W) and (M, H, W), mean over foreground classes that either shows."""
    counted = (a[:, None] != IGNORE) & (b[None] != IGNORE)
    total, n = torch.zeros(len(a), len(b)), torch.zeros(len(a), len(b))
    for k in range(1, n_classes):
        mine, theirs = (a[:, None] == k) & counted, (b[None] == k) & counted
        union = (mine | theirs).sum((2, 3))
        total += torch.where(union > 0, 1 - (mine & theirs).sum((2, 3)) / union.clamp(min=1), 0)
        n += union > 0
    return total / n.clamp(min=1)


def generalised_energy(drawn: torch.Tensor, raters: torch.Tensor, *, n_classes: int) -> float:
    """Returns the squared generalised energy distance, 2 E d(S, Y) - E d(S, S') - E d(Y, Y') with d = 1 - IoU.

    0 where the drawn labels (N, H, W) are spread as the raters' (M, H, W), whatever they say; d is 0 for two empty
    masks. Kohl et al. 2018, eq. 4.
    """
    across = _distances(drawn, raters, n_classes).mean()
    return float(2 * across - _distances(drawn, drawn, n_classes).mean() - _distances(raters, raters, n_classes).mean())


def write_plausible(segmenter: Segmenter, images: ImageSet, *, out: str | Path, n: int = 8, seed: int = 0) -> PairSet:
    """Returns pairs of each image with n of its plausible masks, written to the folder `out`: a source of layouts.

    Ids are ID-0, ID-1, ...; each keeps its image's group, so nothing drawn from one of them gets past a split. The
    set carries what the segmenter was taught.

    Raises:
        UserError: as `sample_masks`, if n is below 1, or if `out` holds something.
    """
    if n < 1:
        raise UserError(f"samples={n}", rule="each image gets one mask or more", repair="write samples=8")
    pixels, masks, ids, groups = [], [], [], []
    for pair in images:
        unit = pixels_to_unit(to_channels(pair.image)[None], segmenter.info.intensity_range)
        prob = sample_masks(segmenter, unit, n=n, rngs=[sample_rng(seed, "plausible", pair.id)])[0]
        for k, labels in enumerate(top_class(prob).to(torch.uint8).numpy()):
            pixels.append(pair.image)
            masks.append(labels)
            ids.append(f"{pair.id}-{k}")
            groups.append(pair.group)
    drawn = memory_set(pixels, masks, segmenter.info, ids=ids, groups=groups)
    pairs = PairSet(drawn.items, drawn.info, where=drawn.where, taught=joined([segmenter.taught, images.taught]))
    write_folder(pairs, Path(out))
    return pairs
