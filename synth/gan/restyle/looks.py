"""Appearance as a few numbers: colours and how strong each band of frequencies is; styles found by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from synth.core.checks import UserError
from synth.core.rng import derive_seed, one_thread
from synth.gan.restyle.settings import StylesSettings

N_BANDS = 6
N_STARTS = 8
"""Starts of k-means, of which the tightest result is taken."""


def look_of(images: torch.Tensor) -> torch.Tensor:
    """Returns the appearance of unit images (B, C, H, W): mean and deviation by channel, then bands, (B, 2 C + 6).

    A band is the natural logarithm of the mean amplitude of the grey image in a ring of frequencies; rings are of equal
    width in octaves up to Nyquist.
    """
    with one_thread():
        images = images.float().cpu()
        height, width = images.shape[-2:]
        grey = images.mean(1)
        amplitude = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs() / math.sqrt(height * width)
        radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
        edges = torch.logspace(math.log2(1.0 / min(height, width)), -1, N_BANDS + 1, base=2)
        edges[0] = 0.5 / min(height, width)
        rings = [(radius > low) & (radius <= high) for low, high in zip(edges, edges[1:], strict=False)]
        bands = torch.stack([amplitude[:, ring].mean(1) if ring.any() else torch.zeros(len(images))
                             for ring in rings], 1)
        return torch.cat([images.mean((2, 3)), images.std((2, 3)), (bands + 1e-3).log()], 1)


@dataclass(frozen=True)
class Styles:
    """The styles of a training set.

    Attributes:
        names: K of them. of_image: style of each image, (N,) int64.
        centres: mean look of each style, (K, F). scale: deviation of each number of a look over all images, (F,).
        clustered: whether they were found by their looks, not given.
    """

    names: tuple[str, ...]
    of_image: torch.Tensor
    centres: torch.Tensor
    scale: torch.Tensor
    clustered: bool


def look_distance(looks: torch.Tensor, centres: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns the distance of looks (N, F) from centres (K, F), in deviations, root mean square, (N, K)."""
    return ((looks[:, None] - centres[None]) / scale).square().mean(2).sqrt()


def find_styles(looks: torch.Tensor, domains: Sequence[str | None], settings: StylesSettings, *, ids: Sequence[str],
                seed: int) -> Styles:
    """Returns the styles of images by their domains, or by their looks (N, F).

    Raises:
        UserError: if some images have a domain and some have none, there are fewer than two styles, or one of them has
            too few images.
    """
    with_domain = [d is not None for d in domains]
    clustered = settings.by == "clusters" or (settings.by == "auto" and not any(with_domain))
    if not clustered and not all(with_domain):
        raise UserError(f"image {ids[with_domain.index(False)]}", rule=f"{with_domain.count(False)} of {len(ids)} "
                        "images have no domain", repair="list them in the domains.csv (name,domain) of their folder, "
                        "or take styles.by=clusters")
    scale = looks.std(0).clamp(min=1e-3)
    if clustered:
        names, of_image = _clusters(looks / scale, settings.n_clusters, seed=seed, brightness=looks[:, 0])
    else:
        names = tuple(sorted(set(map(str, domains))))
        of_image = torch.tensor([names.index(str(d)) for d in domains])
    _check_counts(names, of_image, settings.least, clustered=clustered)
    centres = torch.stack([looks[of_image == k].mean(0) for k in range(len(names))])
    return Styles(names, of_image, centres, scale, clustered)


def cluster_names(n: int) -> tuple[str, ...]:
    """Returns the names of n styles that were found by their looks."""
    return tuple(f"cluster_{k}" for k in range(n))


def _clusters(looks: torch.Tensor, n: int, *, seed: int,
              brightness: torch.Tensor) -> tuple[tuple[str, ...], torch.Tensor]:
    """Returns names and the cluster of each look (N, F); the darkest cluster is the first."""
    values, found = looks.double().numpy(), []
    if len(values) < n:
        raise UserError(f"styles.n_clusters={n}", rule=f"there are {len(values)} images", repair="give more images")
    for start in range(N_STARTS):
        rng = np.random.default_rng(derive_seed(seed, "clusters", start))
        centres, label = kmeans2(values, n, minit="++", seed=rng, missing="warn")
        found.append((float(np.square(values - centres[label]).sum()), start, label))
    label = torch.from_numpy(min(found)[2].astype(np.int64))
    there = label.unique().tolist()
    order = sorted(there, key=lambda k: float(brightness[label == k].mean()))
    of_image = torch.tensor([order.index(k) for k in label.tolist()])
    return cluster_names(len(order)), of_image


def _check_counts(names: Sequence[str], of_image: torch.Tensor, least: int, *, clustered: bool) -> None:
    if len(names) < 2:
        raise UserError(f"styles: {', '.join(names)}", rule="there is one style alone, and nothing to translate into",
                        repair="give images of another site, scanner or stain (data.unlabelled=DIR), or take "
                        "styles.by=clusters")
    counts = torch.bincount(of_image, minlength=len(names)).tolist()
    for name, n in zip(names, counts, strict=True):
        if n < least:
            raise UserError(f"style {name}", rule=f"it has {n} training image(s), fewer than styles.least={least}",
                            repair="lower styles.n_clusters" if clustered else "give more of its images, or give it "
                            "the name of a like domain in domains.csv")
