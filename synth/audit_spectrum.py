"""`synth audit --spectrum`: where synthetic images leave the real spectrum, in figures and in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synth.core.checks import UserError
from synth.core.data import DataSettings
from synth.core.files import check_file, replace_file, write_json
from synth.core.pairs import Arrays, ImageSet, PairSet
from synth.core.shell import is_main, refuse, required, say, take
from synth.core.space import pixels_to_unit
from synth.formats import load_images, load_pairs
from synth.gates import GateSettings
from synth.gates.spectrum import Difference, SpectrumReference, difference, expected_beyond, spectrum_reference
from synth.spectral.borders import Border, padded_side
from synth.spectral.fingerprint import fingerprint, places_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DB = 20 / np.log(10)
"""Decibels of a natural logarithm of an amplitude."""


@dataclass(frozen=True)
class SpectrumAudit:
    """How synthetic spectra differ from real ones.

    Attributes:
        frequencies: middle of each band, cycles per pixel. bands: made less real amplitude in each, dB.
        peaks: names of the marks of an upsampling (peaks, in cycles per pixel, and combs), and `at`: by how much they
            are stronger than in real images, dB.
        scores: of the synthetic images, in deviations. reference: of the real ones, with the gate's threshold.
        real_beyond: share of further real images that this threshold is expected to leave out.
    """

    frequencies: tuple[float, ...]
    bands: Difference
    peaks: tuple[str, ...]
    at: Difference
    scores: np.ndarray
    reference: SpectrumReference
    real_beyond: float

    @property
    def has_threshold(self) -> bool:
        """Whether there were real images enough for one."""
        return bool(np.isfinite(self.reference.threshold))

    @property
    def share_beyond(self) -> float:
        """Share of the synthetic images that the spectrum gate would reject."""
        return float((self.scores > self.reference.threshold).mean())

    def words(self) -> dict[str, object]:
        """Returns all figures, as JSON takes them."""
        def listed(names: Sequence[float | str], d: Difference) -> list[dict[str, float | str | None]]:
            bounds = zip(d.lo.tolist(), d.hi.tolist(), strict=True) if d.has_bounds else [(None, None)] * len(d.value)
            return [{"at": n, "db": float(v), "lo": low, "hi": high}
                    for n, v, (low, high) in zip(names, d.value, bounds, strict=True)]

        return {"bands": listed(self.frequencies, self.bands), "peaks": listed(self.peaks, self.at),
                "score": {"median": float(np.median(self.scores)), "share_beyond": self.share_beyond,
                          "threshold": self.reference.threshold if self.has_threshold else None,
                          "real_beyond": self.real_beyond,
                          "n_made": len(self.scores)}}


def audit_spectrum(made: PairSet, labelled: PairSet, unlabelled: ImageSet | None = None) -> SpectrumAudit:
    """Returns how the images of `made` differ from real ones, which are resized to its size as its generator saw them.

    Raises:
        UserError: if `made` has images of several sizes or of another kind than the real ones.
    """
    shapes = {pair.image.shape[:2] for pair in made}
    size = min(shapes)[0]
    if shapes != {(size, size)}:
        raise UserError(made.where, rule=f"images of {len(shapes)} size(s), such as {min(shapes)}; frequencies can be "
                        "compared at one square working size only", repair="audit a set of a generator of scale fit")
    real = [labelled.arrays(size), *([unlabelled.arrays(size)] if unlabelled is not None else [])]
    drawn, info = made.arrays(size), labelled.info
    if drawn.info.channels != info.channels or tuple(drawn.info.intensity_range) != tuple(info.intensity_range):
        raise UserError(made.where, rule=f"images of {drawn.info.channels} channel(s), range "
                        f"{drawn.info.intensity_range}; the real ones have {info.channels}, {info.intensity_range}",
                        repair="give the real images that it was drawn from")
    return compare_spectra(drawn, Arrays(np.concatenate([r.images for r in real]), None,
                                         sum((r.ids for r in real), ()), sum((r.groups for r in real), ()), info))


def compare_spectra(made: Arrays, real: Arrays) -> SpectrumAudit:
    """Returns how two sets at one working size differ; see `SpectrumAudit`."""
    ours, theirs = (fingerprint(pixels_to_unit(a.images, a.info.intensity_range)) for a in (made, real))
    quantile = GateSettings().spectrum_quantile
    reference = spectrum_reference(real, quantile=quantile)
    scores = reference.score(pixels_to_unit(made.images, made.info.intensity_range))
    groups = {"made_groups": made.groups, "real_groups": real.groups}
    bands, at = (difference(DB * getattr(ours, k).numpy(), DB * getattr(theirs, k).numpy(), **groups)
                 for k in ("bands", "peaks"))
    side = padded_side(real.images.shape[-1], Border().pad)
    places = places_of((side, side))
    return SpectrumAudit(places.frequencies, bands, places.names, at, scores.numpy(), reference,
                         expected_beyond(len(real.images), quantile=quantile) if len(real.images) > 1 else 0.0)


def spectrum_lines(found: SpectrumAudit) -> list[str]:
    """Returns what was found, a line per band, and one per peak that stands out more than in real images.

    Where there are no intervals, one per peak.
    """
    known = found.bands.has_bounds
    lines = [f"{len(found.scores)} synthetic images; decibels above (+) or below (-) real ones, " + (
        "95 % over groups" if known else "without intervals: one side is of a single group")]
    lines += _levels([f"{f:.3f} cycles/px" for f in found.frequencies], found.bands)
    marks = _levels(found.peaks, found.at)
    marks = [line for line, low in zip(marks, found.at.lo, strict=True) if low > 0 or not known]
    lines += marks or ["  no marks of an upsampling beyond what real images show"]
    beyond = (f"{found.share_beyond:.0%} beyond {found.reference.threshold:.2f}, as {found.real_beyond:.0%} of real "
              "images are expected to be" if found.has_threshold else "one real image sets no threshold")
    return [*lines, f"  score: median {np.median(found.scores):.2f}; {beyond}"]


def _levels(names: Sequence[str], found: Difference) -> list[str]:
    return [f"  {name}: {v:+.1f}" + (f" ({low:+.1f} to {high:+.1f})" if found.has_bounds else "")
            for name, v, low, high in zip(names, found.value, found.lo, found.hi, strict=True)]


def spectrum_figure(found: SpectrumAudit) -> Figure:
    """Returns a figure: difference over frequency with its interval, and the peaks of upsampling beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.fill_between(found.frequencies, found.bands.lo, found.bands.hi, color="#0072B2", alpha=0.2, linewidth=0)
    left.plot(found.frequencies, found.bands.value, color="#0072B2", marker="o", markersize=3)
    left.set(xscale="log", xlabel="cycles per pixel", ylabel="synthetic / real amplitude, dB")
    place = np.arange(len(found.peaks))
    right.errorbar(found.at.value, place, fmt="o", color="#D55E00", markersize=4,
                   xerr=[found.at.value - found.at.lo, found.at.hi - found.at.value])
    right.set(yticks=place, yticklabels=found.peaks, xlabel="beyond real images, dB")
    right.invert_yaxis()
    left.axhline(0, color="#888888", linewidth=0.8)
    right.axvline(0, color="#888888", linewidth=0.8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def run_spectrum(folder: Path, data: DataSettings, overrides: Sequence[str], *, json_file: Path | None,
                 dry_run: bool) -> None:
    """Runs `synth audit --spectrum FOLDER`: prints `spectrum_lines`, draws `out`, writes `json_file`.

    Raises:
        UserError: for unknown settings, an `out` that is no PNG, or as `audit_spectrum`.
    """
    out, rest = take(overrides, "out")
    refuse(rest, "data.labelled=, data.unlabelled=, data.channels=, data.mask_map= and out=FILE.png")
    if out and not out.endswith(".png"):
        raise UserError(f"out={out}", rule="it names a picture", repair="write out=spectrum.png")
    if out:
        check_file(Path(out), "out=")
    where = required(data.labelled, "data.labelled", "data/labelled")
    if dry_run:
        say(f"made: {folder}\nlabelled: {where}\nunlabelled: {data.unlabelled}\nout: {out}")
        return
    labelled = load_pairs(where, mask_map=data.mask_map, channels=data.channels)
    unlabelled = load_images(data.unlabelled, channels=labelled.info.channels, like=labelled.info) \
        if data.unlabelled else None
    found = audit_spectrum(load_pairs(folder), labelled, unlabelled)
    for line in spectrum_lines(found):
        say(line)
    if out and is_main():
        replace_file(Path(out), lambda path: spectrum_figure(found).savefig(path, format="png", dpi=150))
        say(out)
    if json_file is not None and is_main():
        write_json(json_file, {"spectrum": found.words(), "data": data.model_dump(mode="json"), "made": str(folder)})
