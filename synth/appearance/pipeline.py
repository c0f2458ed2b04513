"""SpectralPipeline: shows its source with other amplitudes. It moves and paints nothing, so labels stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

from synth.appearance.amplitudes import Amplitudes
from synth.appearance.settings import OperationSettings
from synth.core.checks import UserError
from synth.core.files import hash_json
from synth.core.rng import choice, sample_rng
from synth.generator import Generator, check_request
from synth.pipelines import DrawnOutput, draw_seeds, own_config, unit_to_output, weights_hash
from synth.spectral import (
    BandSettings,
    Border,
    KspaceSettings,
    MatchSettings,
    MixSettings,
    SwapSettings,
    draw_band_gains,
    draw_kspace_noise,
    draw_match,
    draw_mix,
    draw_swap,
    kspace_noise,
    match_amplitude,
    reweight_bands,
)
from synth.spectral.reweight import BandGains
from synth.spectral.swap import lend_amplitude
from synth.spectral.transform import view_within


class SpectralPipeline(DiffusionPipeline, Generator):
    """An operation of `synth.spectral` on the amplitudes of a source: FPGM's (arXiv 2508.06517), FDA, and others.

    Args:
        amplitudes: the prior it draws towards, or whose amplitudes it lends.
        operation, strength, pad, field_of_view, clamp: see `OperationSettings` and `Border`.
        unit_low, unit_high: pixel values that are -1 and 1 in unit space.
        bit_depth: of the images it was fitted on, None where an older folder does not say.
    """

    kind = "spectral"

    def __init__(  # noqa: PLR0913 - the saved settings, flat as diffusers keeps them
        self, amplitudes: Amplitudes, operation: str = "match_ratio", strength: list[float] = (0.0, 0.3),
        pad: float = 0.125, field_of_view: str = "auto", clamp: bool = True,  # noqa: FBT001, FBT002
        unit_low: float = 0.0, unit_high: float = 255.0, bit_depth: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(amplitudes=amplitudes)
        self.register_to_config(operation=operation, strength=list(strength), pad=pad, field_of_view=field_of_view,
                                clamp=clamp, unit_low=unit_low, unit_high=unit_high, bit_depth=bit_depth)

    @property
    def size(self) -> int:
        """Side of the images it changes, px."""
        return int(self.amplitudes.config.sample_size)

    @property
    def channels(self) -> int:
        """Channels of the images it changes."""
        return int(self.amplitudes.config.in_channels)

    @property
    def intensity_range(self) -> tuple[float, float]:
        """Pixel values that are -1 and 1 in unit space."""
        return float(self.config.unit_low), float(self.config.unit_high)

    @property
    def border(self) -> Border:
        """How it treats what lies at and beyond the borders of an image."""
        return Border(pad=self.config.pad, field_of_view=self.config.field_of_view, clamp=self.config.clamp)

    def sampler_settings(self) -> dict[str, float | int | str | list[float]]:
        """Returns every setting that `sample` uses; the mode says that the source's content stays."""
        return {"mode": "appearance", "operation": self.config.operation, "strength": list(self.config.strength),
                **self.border.model_dump(mode="json")}

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits over settings, statistics and provenance."""
        return hash_json({"settings": self.sampler_settings(), "range": self.intensity_range,
                          "config": own_config(self.amplitudes), "weights": weights_hash(self.amplitudes)})

    def lenders(self, seeds: Sequence[int]) -> tuple[tuple[str, str] | None, ...]:
        """Returns id and group of the image whose amplitudes go into each row, None where there is none."""
        if not self.amplitudes.n_lenders:
            return (None,) * len(seeds)
        return tuple(self.amplitudes.lender(row) for row in self._lent_rows(seeds))

    def _lent_rows(self, seeds: Sequence[int]) -> list[int]:
        return [choice(sample_rng(seed, "lender"), self.amplitudes.n_lenders) for seed in seeds]

    @torch.no_grad()
    def sample(self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int],
               keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns unit `image` (B, C, S, S) with other amplitudes; the labels `mask` (B, S, S) are not looked at.

        Args:
            keep_in: not needed: dark frames come out untouched.

        Raises:
            UserError: if sizes or seeds do not fit.
        """
        check_request(self, image, mask, seeds=seeds)
        return self._changed(image.to(self.device).float(), seeds).clamp(-1, 1).cpu()

    def _changed(self, images: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        rngs, name = [sample_rng(seed, "appearance") for seed in seeds], self.config.operation
        strength, border = tuple(self.config.strength), self.border
        if name in ("match_ratio", "match_coded"):
            settings = MatchSettings(form=name.removeprefix("match_"), strength=strength, border=border)
            changed = match_amplitude(images, self.amplitudes.prior, draw_match(rngs, settings))
            # FPGM's code knows no frames and paints into them; what we write has them as they were.
            view = view_within(images, border) if name == "match_coded" else None
            return changed if view is None else torch.where(view.inside, changed, images)
        if name in ("fda", "mix"):
            drawn = (draw_swap(rngs, SwapSettings(beta=strength, border=border)) if name == "fda"
                     else draw_mix(rngs, MixSettings(share=strength, border=border)))
            return lend_amplitude(images, self.amplitudes.lent[self._lent_rows(seeds)].float(), drawn)
        if name == "kspace":
            return kspace_noise(images, draw_kspace_noise(rngs, KspaceSettings(sigma=strength, border=border)))
        return reweight_bands(images, _band_gains(rngs, strength, border))

    @torch.no_grad()
    def __call__(
        self, image: torch.Tensor, mask: torch.Tensor, *, seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, output_type: str = "pil",
    ) -> DrawnOutput:
        """Returns changed images for unit `image` (B, C, S, S) and its labels `mask` (B, S, S).

        Args:
            seeds: one per image. generator: in the place of seeds: one for all images or one for each, from which the
                seeds are drawn. Without either the images are not repeatable.
            output_type: "pil", "np" or "pt".

        Raises:
            UserError: as `sample`, or for an unknown `output_type`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type={output_type}", rule="no such form", repair="take pil, np or pt")
        return unit_to_output(self.sample(image, mask, seeds=draw_seeds(len(image), seeds, generator)), output_type)


def _band_gains(rngs: Sequence[torch.Generator], strength: tuple[float, float], border: Border) -> BandGains:
    # A curve of random gains whose largest possible logarithm is drawn first.
    low, high = strength
    largest = torch.stack([low + (high - low) * torch.rand((), generator=rng, dtype=torch.float64) for rng in rngs])
    drawn = draw_band_gains(rngs, BandSettings(log_gain=1.0, border=border))
    return BandGains(drawn.log_gains * largest[:, None], border)


def pipeline_of(amplitudes: Amplitudes, operation: OperationSettings, *,
                intensity_range: tuple[float, float], bit_depth: int) -> SpectralPipeline:
    """Returns the pipeline that does `operation` with `amplitudes`.

    Args:
        intensity_range: pixel values that are -1 and 1 in unit space. bit_depth: 8 or 16, of the images.
    """
    low, high = intensity_range
    return SpectralPipeline(amplitudes, operation.name, list(operation.strength), unit_low=float(low),
                            unit_high=float(high), bit_depth=bit_depth, **operation.border.model_dump())
