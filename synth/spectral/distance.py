"""Are two sets' spectra different? A distance, and what it would be if both came from one centre."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from synth.core.checks import UserError
from synth.core.rng import sample_rng

MIN_GROUPS = 2
CHUNK = 64
"""Resamples computed at a time: memory does not grow with their number."""


@dataclass(frozen=True)
class Distance:
    """How far two spectra are apart.

    Attributes:
        value: root mean square difference of their radial shapes, dB. floor: what 95 % of pairs of sets drawn from the
            pooled groups stay below, dB; p: share of those at least as far apart. Both nan without resampling.
    """

    value: float
    floor: float
    p: float

    @property
    def differs(self) -> bool:
        """Whether the two sets are further apart than chance would have them."""
        return self.value > self.floor


def _shapes(n: torch.Tensor, radial: torch.Tensor) -> torch.Tensor:
    # Log amplitudes (..., K, C, R - 1), dB, without the mean brightness and without the level, of sums (..., K) and
    # (..., K, C, R); nan for regions without images.
    mean = (radial / n[..., None, None])[..., 1:]
    return 20 * torch.log10((mean / mean.sum(-1, keepdim=True)).clamp_min(1e-12))


def _apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().flatten(-3).nanmean(-1).sqrt()


def spectral_distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], *, n_boot: int, seed: int) -> Distance:
    """Returns the distance of two priors' sums, n (G, K) and radial (G, K, C, R), over the regions that both have.

    Each profile is divided by its sum, so that brightness and contrast are of no account: only how the amplitude is
    shared among frequencies. For the floor, both sets' groups are pooled and two sets of the old numbers of groups are
    drawn from the pool with replacement, `n_boot` times: patients, not images, are what a centre samples.

    Raises:
        UserError: if they share no region, or there are too few groups to resample.
    """
    value = float(_apart(_shapes(a["n"].sum(0), a["radial"].sum(0)), _shapes(b["n"].sum(0), b["radial"].sum(0))))
    if value != value:
        raise UserError("the two priors", rule="no region has images in both", repair="fit both on the same classes")
    if not n_boot:
        return Distance(value, float("nan"), float("nan"))
    sizes = len(a["n"]), len(b["n"])
    if min(sizes) < MIN_GROUPS:
        raise UserError(f"{sizes[0]} and {sizes[1]} group(s)", rule="chance is judged by resampling groups, and takes "
                        f"at least {MIN_GROUPS} in each set", repair="fit on more groups, or take n_boot=0")
    n, radial = torch.cat([a["n"], b["n"]]), torch.cat([a["radial"], b["radial"]])
    rng, drawn = sample_rng(seed, "spectral distance"), []
    for start in range(0, n_boot, CHUNK):
        shapes = [_resampled(n, radial, (min(CHUNK, n_boot - start), size), rng) for size in sizes]
        drawn.append(_apart(*shapes))
    chance = torch.cat(drawn)
    chance = chance[chance.isfinite()]  # a resample in which a set has no region at all says nothing
    p = (1 + int((chance >= value).sum())) / (1 + len(chance))
    return Distance(value, float(chance.quantile(0.95)), p)


def _resampled(n: torch.Tensor, radial: torch.Tensor, shape: tuple[int, int], rng: torch.Generator) -> torch.Tensor:
    picks = torch.randint(len(n), shape, generator=rng)
    times = n.new_zeros(shape[0], len(n)).scatter_add_(1, picks, torch.ones(shape, dtype=n.dtype))
    return _shapes(times @ n, torch.einsum("bg,gkcr->bkcr", times, radial))
