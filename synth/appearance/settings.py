"""Settings of the spectral generator; every default of it stands here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synth.core.config import Settings
from synth.core.data import DataSettings
from synth.spectral import Border, PriorSettings

Operation = Literal["match_ratio", "match_coded", "fda", "mix", "reweight", "kspace"]


class OperationSettings(Settings):
    """What is done to the amplitudes of an image, and how far.

    Attributes:
        name: "match_ratio" and "match_coded" draw them towards the prior, see `match_amplitude`; "fda" swaps the low
            ones for, and "mix" mixes all with, those of another image (`mix_amplitude`); "reweight" changes the octaves
            at random; "kspace" adds noise, which changes phases too.
        strength: range, drawn for each image, of the exponent or gamma (match), the square's half side as a share of
            the image's (fda), the share mixed in (mix), the largest natural logarithm of a band's gain (reweight), or
            the noise as a share of the image's own amplitudes (kspace). 0 changes nothing but for fda, where it still
            takes over the mean brightness.
        n_references: for fda and mix, how many images' amplitudes are kept with the generator.
    """

    name: Operation = "match_ratio"
    strength: tuple[float, float] = (0.0, 0.3)
    n_references: int = Field(64, ge=1)
    border: Border = Border()


class OwnPriorSettings(PriorSettings):
    """How the generator's prior is measured: at its own size."""

    size: int | None = Field(None, ge=16)


class SpectralSettings(Settings):
    """A generator that changes amplitudes and paints nothing.

    Attributes:
        size: side to which images are resized, px.
        prior: what the match draws towards, fitted on the labelled pairs (kind "whole": on the unlabelled images too);
            its `size` is the generator's. Not fitted for other operations.
        seed: chooses the images whose amplitudes are kept.
    """

    kind: Literal["spectral"] = "spectral"
    data: DataSettings = DataSettings()
    out: str | None = None
    size: int = Field(128, ge=16)
    operation: OperationSettings = OperationSettings()
    prior: OwnPriorSettings = OwnPriorSettings()
    seed: int = 0
