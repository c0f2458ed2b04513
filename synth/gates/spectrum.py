"""The spectrum gate: how real images' spectra vary, learnt on them, and from where on one is strange."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from synth.core.pairs import Arrays
from synth.core.rng import one_thread, sample_rng
from synth.core.space import pixels_to_unit
from synth.gates.scores import spectrum_score
from synth.spectral.fingerprint import N_BANDS, fingerprint

FOLDS = 5
LEAST_SD = 0.05
"""Least deviation of a feature, natural logarithm: a few alike images must not make every other one strange."""


@dataclass(frozen=True)
class SpectrumReference:
    """Spectra of real images at one size: mean and deviation of each feature (F,), and the threshold of the score."""

    mean: torch.Tensor
    sd: torch.Tensor
    threshold: float
    size: int

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Returns `spectrum_score` of unit images (B, C, size, size), (B,) on the CPU."""
        with one_thread():
            return spectrum_score(fingerprint(images).features(), self.mean, self.sd, n_bands=N_BANDS)


def real_features(arrays: Arrays) -> torch.Tensor:
    """Returns the features (N, F) of a set at one working resolution."""
    with one_thread():
        return fingerprint(pixels_to_unit(arrays.images, arrays.info.intensity_range)).features()


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sd = features.std(0) if len(features) > 1 else torch.zeros_like(features[0])
    return features.mean(0), sd.square().add(LEAST_SD**2).sqrt()


def spectrum_reference(arrays: Arrays, *, quantile: float) -> SpectrumReference:
    """Returns the reference of real images `arrays`.

    The threshold is the quantile of scores that images get from the statistics of other groups than their own (folds of
    groups held aside): an image that helped to set the statistics would look too normal. With one group, folds are of
    images; with one image there is none (inf).

    Args:
        quantile: share of real images that pass; see `expected_beyond`.
    """
    features = real_features(arrays)
    fold = torch.tensor(_folds(arrays.groups))
    scores = torch.zeros(len(features))
    for k in fold.unique().tolist():
        aside = fold == k
        if not aside.all():
            mean, sd = _moments(features[~aside])
            scores[aside] = spectrum_score(features[aside], mean, sd, n_bands=N_BANDS)
    # Nothing is learnt from one image of how others differ, and a threshold of 0 would call every other one strange.
    if len(scores) == 1:
        return SpectrumReference(*_moments(features), math.inf, arrays.images.shape[-1])
    # The smallest score that the wanted share of images, counting the next one too, does not exceed.
    threshold = float(scores.sort().values[_rank(len(scores), quantile) - 1])
    return SpectrumReference(*_moments(features), threshold, arrays.images.shape[-1])


def expected_beyond(n: int, *, quantile: float) -> float:
    """Returns the share of further real images that the threshold of `n` of them is expected to leave out.

    1 - quantile where n allows it; of fewer than 1 / (1 - quantile) images the largest score is the threshold, and one
    in n + 1 is beyond.
    """
    return 1 - _rank(n, quantile) / (n + 1)


def _rank(n: int, quantile: float) -> int:
    return min(n, math.ceil((n + 1) * quantile))


def _folds(groups: Sequence[str]) -> list[int]:
    names = sorted(set(groups))
    order = torch.randperm(max(len(names), 1), generator=sample_rng(0, "spectrum folds")).tolist()
    if len(names) == 1:
        return [i % FOLDS for i in range(len(groups))]
    fold = {name: order[i] % FOLDS for i, name in enumerate(names)}
    return [fold[group] for group in groups]


@dataclass(frozen=True)
class Difference:
    """Made less real for each of F quantities, dB: the difference of means over images, and 95 % bounds over groups.

    The bounds are nan where all images of a side are of one group: how groups differ is then not known.
    """

    value: np.ndarray
    lo: np.ndarray
    hi: np.ndarray

    @property
    def has_bounds(self) -> bool:
        """Whether both sides have groups to draw from."""
        return bool(np.isfinite(self.lo).all())


def difference(made: np.ndarray, real: np.ndarray, *, made_groups: Sequence[str], real_groups: Sequence[str],
               n_resamples: int = 2000) -> Difference:
    """Returns how far levels (N, F) of made images, dB, lie above those (M, F) of real ones.

    Both sets' groups are drawn with replacement (percentile bootstrap); a made image belongs to its parent's group.
    """
    value = made.mean(0) - real.mean(0)
    if min(len(set(made_groups)), len(set(real_groups))) < 2:
        return Difference(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    rng = np.random.default_rng(0)
    means = [_resampled(v, g, rng, n_resamples) for v, g in ((made, made_groups), (real, real_groups))]
    lo, hi = np.quantile(means[0] - means[1], (0.025, 0.975), axis=0)
    return Difference(value, lo, hi)


def _resampled(values: np.ndarray, groups: Sequence[str], rng: np.random.Generator, n: int) -> np.ndarray:
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, values)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n)
    return weights @ sums / (weights @ np.bincount(index))[:, None]
