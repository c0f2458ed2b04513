"""FrequencyPrior: how strong each frequency is in a set of images; fitted once, saved, shown, compared, applied."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from synth.core.checks import UserError
from synth.core.config import load_config
from synth.core.files import hash_json, replace_file, sha256, write_json
from synth.core.pairs import ImageSet, Pair, PairSet
from synth.core.space import pixels_to_unit, resize_image, resize_mask, to_channels
from synth.spectral.distance import Distance, spectral_distance
from synth.spectral.grid import ring_frequencies
from synth.spectral.regions import WHOLE, Measured, measure
from synth.spectral.settings import Kind, PriorSettings
from synth.spectral.sums import SUMS, Seen, Sums, joined

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS, FACTS = "prior.safetensors", "config.json"


def has_prior(folder: str | Path) -> bool:
    """Returns whether `FrequencyPrior.save_pretrained` wrote a prior into a folder, or half of one."""
    return any((Path(folder) / name).is_file() for name in (FACTS, WEIGHTS))


@dataclass(frozen=True)
class FrequencyPrior:
    """Amplitude statistics of a set of images, per region (class) and channel: K regions, C channels, R rings.

    Amplitudes are |F| of the orthonormal Fourier transform of values in [0, 1]: that of white noise is flat and does
    not depend on the image's size. After FPGM (Xi, Liu & Li 2025, arXiv 2508.06517), whose code averages radially
    over greyscale bands along outlines (kind "edge_raw", channels "grey").

    Attributes:
        settings: how it was measured. regions: names of the K regions. seen: which images it was fitted on.
        sums: as `Sums.tensors` gives them, float64.
    """

    settings: PriorSettings
    regions: tuple[str, ...]
    seen: Seen
    sums: dict[str, torch.Tensor] = dataclasses.field(repr=False)

    @classmethod
    def fit(cls, images: ImageSet, *, kind: Kind = "edge_raw", size: int | None = 256,  # noqa: PLR0913
            bands: int | None = None, sectors: int = 8, edge_px: int = 2, channels: str = "own") -> FrequencyPrior:
        """Returns the prior of a PairSet, or for kind "whole" of an ImageSet, read one by one in flat memory.

        Args:
            images: the set. kind, size, bands, sectors, edge_px, channels: see `PriorSettings`.

        Raises:
            UserError: for impossible settings, masks that are needed and missing, or no outline in any image.
        """
        settings = load_config(PriorSettings, {"kind": kind, "size": size, "bands": bands, "sectors": sectors,
                                               "edge_px": edge_px, "channels": channels})
        if settings.kind != "whole" and not isinstance(images, PairSet):
            raise UserError(images.where, rule=f"kind={settings.kind} looks along the outlines of label masks, and "
                            "these images have none", repair="take kind=whole, or load them with synth.load_pairs")
        sums = Sums()
        for pair in images:
            sums.add(pair, _measure(pair, images, settings))
        classes = (WHOLE,) if settings.kind == "whole" else images.info.classes[1:]
        prior = cls(settings, classes, sums.seen(), sums.tensors())
        if not prior.n.any():
            raise UserError(images.where, rule="no image has an outline of a class above 0",
                            repair="check the masks, or take kind=whole")
        return prior

    def merged(self, other: FrequencyPrior) -> FrequencyPrior:
        """Returns the prior that one fit of both sets would give; they must not share images.

        Raises:
            UserError: if the two were not measured alike.
        """
        self.check_alike(other)
        return FrequencyPrior(self.settings, self.regions, self.seen.joined(other.seen), joined(self.sums, other.sums))

    def check_alike(self, other: FrequencyPrior) -> None:
        """Returns nothing; raises if `other` was measured with other settings, regions or channels.

        Raises:
            UserError: naming the difference.
        """
        for name, a, b in (("settings", self.settings, other.settings), ("regions", self.regions, other.regions),
                           ("channels", self.n_channels, other.n_channels)):
            if a != b:
                raise UserError(f"{name} {a!r} and {b!r}", rule="only priors that were measured alike can be merged or "
                                "compared", repair="fit both with the same arguments")

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return self.sums["polar"].shape[1]

    @cached_property
    def n(self) -> torch.Tensor:
        """Images that have each region, (K,) float64."""
        return self.sums["n"].sum(0)

    @property
    def frequencies(self) -> torch.Tensor:
        """Middle of each ring, cycles per pixel, (R,) float64; 0 for the first, which is the mean alone."""
        return ring_frequencies(self.settings.n_bands)

    @cached_property
    def radial(self) -> torch.Tensor:
        """Mean amplitude of each ring, (K, C, R) float64; 0 for regions that no image has."""
        return self.sums["radial"].sum(0) / self.n.clamp_min(1)[:, None, None]

    @cached_property
    def radial_sd(self) -> torch.Tensor:
        """Standard deviation between images of each ring's amplitude, (K, C, R) float64; 0 for fewer than two."""
        return _sd(self.radial, self.sums["radial_square"], self.n[:, None, None])

    @cached_property
    def polar(self) -> torch.Tensor:
        """Mean amplitude of each sector of each ring, (K, C, R, A) float64; sector 0 = horizontal frequencies."""
        return self.sums["polar"] / self.n.clamp_min(1)[:, None, None, None]

    @cached_property
    def polar_sd(self) -> torch.Tensor:
        """Standard deviation between images of each sector's amplitude, (K, C, R, A) float64."""
        return _sd(self.polar, self.sums["polar_square"], self.n[:, None, None, None])

    def profile(self, region: str = "") -> torch.Tensor:
        """Returns the radial amplitudes (C, R) of one region, or for "" their mean over all images' regions.

        Raises:
            UserError: if there is no such region, or no image had it.
        """
        if not region:
            return torch.einsum("k,kcr->cr", self.n / self.n.sum(), self.radial)
        if region not in self.regions or not self.n[self.regions.index(region)]:
            found = [name for name, n in zip(self.regions, self.n.tolist(), strict=True) if n]
            raise UserError(f"region={region!r}", rule="this prior has not seen such a region",
                            repair=f"one of {', '.join(found)}, or '' for their mean")
        return self.radial[self.regions.index(region)]

    def distance(self, other: FrequencyPrior, *, n_boot: int = 1000, seed: int = 0) -> Distance:
        """Returns how far two sets' spectra are apart, and how far two halves of one set would be by chance.

        Args:
            n_boot: resamples of groups for the floor; 0 = the distance alone.

        Raises:
            UserError: if the two were not measured alike, or there are too few groups to resample.
        """
        self.check_alike(other)
        return spectral_distance(self.sums, other.sums, n_boot=n_boot, seed=seed)

    def show(self) -> Figure:
        """Returns a matplotlib figure: mean amplitude over frequency, a panel per region, a band of one deviation."""
        from synth.spectral.show import radial_figure

        return radial_figure(self)

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits that identify settings, statistics and provenance."""
        tensors = b"".join(self.sums[name].contiguous().numpy().tobytes() for name in sorted(self.sums))
        return hash_json({**self._facts(), "tensors": sha256(tensors)})

    def _facts(self) -> dict[str, object]:
        return {"kind": type(self).__name__, "settings": self.settings.model_dump(mode="json"),
                "regions": list(self.regions), "seen": dataclasses.asdict(self.seen)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes prior.safetensors and config.json into `folder`, each whole or not at all."""
        tensors = {name: value.contiguous() for name, value in self.sums.items()}
        replace_file(Path(folder) / WEIGHTS, lambda path: save_file(tensors, path))
        write_json(Path(folder) / FACTS, self._facts())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> FrequencyPrior:
        """Returns the prior that `save_pretrained` wrote into a local folder; nothing is downloaded or unpickled.

        Raises:
            UserError: if there is none, or a file of it is damaged.
        """
        facts_file, weights_file = Path(folder) / FACTS, Path(folder) / WEIGHTS
        if not facts_file.is_file() or not weights_file.is_file():
            raise UserError(str(folder), rule=f"no frequency prior is there ({FACTS} and {WEIGHTS})",
                            repair="give the folder that FrequencyPrior.save_pretrained wrote")
        try:
            facts, sums = json.loads(facts_file.read_text(encoding="utf-8")), load_file(weights_file)
            seen = Seen(**{**facts["seen"], "groups": tuple(facts["seen"]["groups"])})
            settings, regions = load_config(PriorSettings, facts["settings"]), tuple(facts["regions"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(str(folder), rule=f"not a frequency prior, or damaged ({error})",
                            repair="fit and save it again") from None
        shape = {name: tuple(value.shape) for name, value in sums.items()}
        if {"buckets", *SUMS} != set(sums) or shape["polar"][::2] != (len(regions), settings.n_bands):
            raise UserError(str(weights_file), rule=f"its tensors are not those of {FACTS} ({shape})",
                            repair="fit and save it again")
        return cls(settings, regions, seen, sums)


def _measure(pair: Pair, images: ImageSet, settings: PriorSettings) -> Measured:
    pixels, mask = to_channels(pair.image), pair.mask
    if settings.size is not None:
        pixels = resize_image(pixels, settings.size)
        mask = None if mask is None else resize_mask(mask, (settings.size, settings.size))
    unit = pixels_to_unit(pixels[None], images.info.intensity_range)
    labels = None if mask is None else torch.from_numpy(mask.astype("int64"))
    return measure(unit, labels, settings, n_classes=images.info.n_classes, name=pair.id)


def _sd(mean: torch.Tensor, square: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    # Sums of squares lose digits where the spread is tiny beside the mean; float64 has them to spare.
    return ((square - n * mean.square()).clamp_min(0) / (n - 1).clamp_min(1)).sqrt()
