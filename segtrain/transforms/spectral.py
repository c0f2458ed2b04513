"""Changes of amplitudes: towards a prior, towards another image's, at random. No pixel moves, no mask is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from synth.core.checks import UserError
from synth.core.config import Settings
from synth.core.rng import choice
from synth.spectral import (
    BandGains,
    BandSettings,
    FrequencyPrior,
    MatchSettings,
    MixSettings,
    PriorSettings,
    SwapSettings,
    draw_band_gains,
    draw_match,
    draw_mix,
    draw_swap,
    match_amplitude,
    mix_amplitude,
    reweight_as_far,
    reweight_bands,
    swap_amplitude,
)
from synth.spectral.settings import DEFAULT_BANDS, Kind

Rngs = Sequence[torch.Generator]
SHORT = 0.8
"""A control that comes less far than this share of the squared distance has fallen short: 1 dB."""


@dataclass(frozen=True)
class Beside:
    """What an operation may look at beside its images: never a mask.

    Attributes:
        prior: of the run, or None. labelled, unlabelled: the step's images as they were read, unit (B, C, H, W).
    """

    prior: FrequencyPrior | None = None
    labelled: torch.Tensor | None = None
    unlabelled: torch.Tensor | None = None


class FrequencySettings(MatchSettings):
    """Images drawn towards the frequency prior of the run (FPGM, arXiv 2508.06517).

    Attributes:
        strength: as in `MatchSettings`, drawn anew for each image.
        kind, channels, edge_px: how the prior is measured (`PriorSettings`) where the run fits its own, on its labelled
            training pairs. One that is given is taken as it was measured.
    """

    strength: tuple[float, float] = (0.0, 0.15)
    kind: Kind = "edge_raw"
    channels: Literal["own", "grey"] = "own"
    edge_px: int = 2
    needs: ClassVar[tuple[str, ...]] = ("prior",)

    def measured(self, *, size: int, patch: int | None) -> PriorSettings:
        """Returns how its prior is measured for images of `size` px, or squares of `patch` px of native images."""
        bands = None if patch is None else min(DEFAULT_BANDS, patch // 2)
        return PriorSettings(kind=self.kind, size=size if patch is None else None, bands=bands, edge_px=self.edge_px,
                             channels=self.channels)

    def of(self, images: torch.Tensor, rngs: Rngs, beside: Beside) -> torch.Tensor:
        """Returns unit images (B, C, H, W) drawn towards the prior, each by a strength of its own."""
        assert beside.prior is not None, "a run whose images are drawn towards a prior has one"
        return match_amplitude(images, beside.prior, draw_match(rngs, self))


class AsFarSettings(Settings):
    """The control of `FrequencySettings`: images changed as far (equal PSNR), by a smooth gain that knows no prior.

    Attributes:
        like: the change whose distance is kept, image by image. shape: as in `BandSettings`; "either" blurs one half of
            the images and sharpens the other, and what is too smooth for a blur to take it far enough as well.
    """

    like: FrequencySettings = FrequencySettings()
    shape: Literal["either", "blur", "sharpen", "tilt", "random"] = "either"
    needs: ClassVar[tuple[str, ...]] = ("prior",)

    def measured(self, *, size: int, patch: int | None) -> PriorSettings:
        """Returns how the prior of `like` is measured."""
        return self.like.measured(size=size, patch=patch)

    def of(self, images: torch.Tensor, rngs: Rngs, beside: Beside) -> torch.Tensor:
        """Returns unit images (B, C, H, W), each as far from its original as `like` would have taken it."""
        there = self.like.of(images, rngs, beside)
        if self.shape != "either":
            return reweight_as_far(images, there, draw_band_gains(rngs, BandSettings(shape=self.shape,
                                                                                     border=self.like.border)))
        blur = draw_band_gains(rngs, BandSettings(shape="blur", border=self.like.border))
        sign = torch.tensor([[2.0 * choice(rng, 2) - 1] for rng in rngs], dtype=torch.float64)
        both = (BandGains(blur.log_gains * s, blur.border) for s in (sign, -sign))
        made, other = (reweight_as_far(images, there, gains) for gains in both)
        short = _distance(made, images) < SHORT * _distance(there, images)
        return torch.where(short[:, None, None, None], other, made)


class FdaSettings(SwapSettings):
    """Low amplitudes of another image of the step (FDA, Yang & Soatto 2020); `partner` says which it is taken from."""

    partner: Literal["unlabelled", "labelled"] = "unlabelled"

    def of(self, images: torch.Tensor, rngs: Rngs, beside: Beside) -> torch.Tensor:
        """Returns unit images (B, C, H, W) with their partners' low amplitudes."""
        return swap_amplitude(images, partners(rngs, beside, self.partner), draw_swap(rngs, self))


class AmplitudeMixSettings(MixSettings):
    """A share of another image's amplitudes (FACT, Xu et al. 2021); `partner` says which it is taken from."""

    partner: Literal["unlabelled", "labelled"] = "unlabelled"

    def of(self, images: torch.Tensor, rngs: Rngs, beside: Beside) -> torch.Tensor:
        """Returns unit images (B, C, H, W) with amplitudes mixed with their partners'."""
        return mix_amplitude(images, partners(rngs, beside, self.partner), draw_mix(rngs, self))


class ReweightSettings(BandSettings):
    """Octaves re-weighted at random: the control that knows neither prior nor other images."""

    def of(self, images: torch.Tensor, rngs: Rngs, beside: Beside) -> torch.Tensor:
        """Returns unit images (B, C, H, W), each re-weighted by a curve of its own."""
        return reweight_bands(images, draw_band_gains(rngs, self))


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.float() - b.float()).square().mean((1, 2, 3))


def partners(rngs: Rngs, beside: Beside, which: Literal["unlabelled", "labelled"]) -> torch.Tensor:
    """Returns another image of the step for each generator, unit (B, C, H, W): never that of its own row.

    Raises:
        UserError: if the step has no such images.
    """
    pool = beside.unlabelled if which == "unlabelled" else beside.labelled
    if pool is None:
        raise UserError(f"partner: {which}", rule="amplitudes are taken from images that this step does not have",
                        repair="pass unlabelled=, or write partner: labelled")
    n = len(pool)
    rows = [(i + 1 + choice(rng, max(n - 1, 1))) % n for i, rng in enumerate(rngs)]
    return pool[torch.tensor(rows, device=pool.device)]


class SpectrumSettings(Settings):
    """What changes amplitudes of labelled and synthetic images, one after another; null = off.

    Attributes:
        frequency: towards the prior. fda, amplitude_mix: towards another image. reweight, as_far: the controls.
    """

    frequency: FrequencySettings | None = None
    fda: FdaSettings | None = None
    amplitude_mix: AmplitudeMixSettings | None = None
    reweight: ReweightSettings | None = None
    as_far: AsFarSettings | None = None

    def members(self) -> dict[str, Settings]:
        """Returns what is on, by name, in order."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: member for name, member in found.items() if member is not None}

    @property
    def is_still(self) -> bool:
        """Whether no amplitude can change under these settings."""
        return not self.members()

    @property
    def needs_unlabelled(self) -> bool:
        """Whether amplitudes are taken from unlabelled images."""
        return any(getattr(member, "partner", "") == "unlabelled" for member in self.members().values())

    def of(self, images: torch.Tensor, rngs: Callable[..., Rngs], beside: Beside) -> torch.Tensor:
        """Returns unit images (B, C, H, W) after every change; `rngs` returns generators for the purpose it is told."""
        for name, member in self.members().items():
            images = member.of(images, rngs("spectrum", name), beside)
        return images
