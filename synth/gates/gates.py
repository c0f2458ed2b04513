"""Thresholds for the scores, calibrated on real images, and the verdict."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.files import hash_json, sha256
from synth.core.pairs import Arrays, ImageSet, PairSet
from synth.core.rng import one_thread
from synth.core.space import labels_to_keep, pixels_to_unit
from synth.gates.scores import faithfulness, false_foreground, highest_correlation, plausibility, thumbnails
from synth.gates.spectrum import SpectrumReference, spectrum_reference

if TYPE_CHECKING:
    from synth.gates.probe import SeamProbe
    from synth.layouts import ShapeModel

Predict = Callable[[torch.Tensor], torch.Tensor]
"""Unit images (B, C, H, W) -> class probabilities (B, K, H, W): the judge."""


class GateSettings(Settings):
    """How strict the gates are.

    Attributes:
        faithfulness: lowest Dice of the judge with the mask, as a share of its median Dice on the labelled pairs.
        confidence: probability from which the judge's foreground outside the kept region counts as false.
        max_false_foreground: largest share of the painted region that may be false foreground; up to it, those
            pixels become ignore.
        clear_px: distance from the foreground within which the judge may err: an outline is no second object.
        novelty_quantile: quantile of the correlation between real images of different groups that a painted
            region may not exceed.
        plausibility: smallest share of real label maps that may be at least as surprising, to the shape model, as the
            pair's.
        spectrum: "report" writes the score of the spectrum and rejects nothing by it: a small autoencoder's texture is
            smoother than a camera's, and most of what it paints would go. "reject" rejects too.
        spectrum_quantile: share of real images that the spectrum gate lets pass.
    """

    faithfulness: float = Field(0.6, ge=0, le=1)
    confidence: float = Field(0.9, gt=0.5, lt=1)
    max_false_foreground: float = Field(0.05, ge=0, le=1)
    clear_px: int = Field(4, ge=0)
    novelty_quantile: float = Field(0.99, gt=0, le=1)
    plausibility: float = Field(0.02, ge=0, lt=1)
    spectrum: Literal["report", "reject"] = "report"
    spectrum_quantile: float = Field(0.99, gt=0, le=1)


@dataclass(frozen=True)
class Verdict:
    """All scores of one pair, and whether it is kept; `reason` names the gate that rejected it."""

    scores: dict[str, float]
    kept: bool
    reason: str


def rules_of(reason: str) -> list[str]:
    """Returns the names of the rules that a pair failed, of a reason such as 'seam 0.90 > 0.50; no foreground left'."""
    return [re.sub(r" \S+ [<>] \S+$", "", part) for part in reason.split("; ")]


@dataclass(frozen=True)
class Gates:
    """The gates with their thresholds.

    Attributes:
        predict: the judge, or None: then only novelty is scored.
        bank: grey thumbnails of the training images and their mirror images, (N, D).
        min_faithfulness, max_correlation: calibrated thresholds.
        identity: hash of thresholds, bank, seam probe, shape model and of the judge's answers on the labelled images.
        seam: finds kept places, or None: then seams are not scored. It brings its own threshold.
        shape: knows label maps, or None: then plausibility is not scored. It brings its own calibration.
        spectrum: how real images' spectra vary, and from where on one is strange; None = not scored.
    """

    predict: Predict | None
    bank: torch.Tensor
    settings: GateSettings
    min_faithfulness: float
    max_correlation: float
    identity: str
    seam: SeamProbe | None = None
    shape: ShapeModel | None = None
    spectrum: SpectrumReference | None = None


THUMB = 32
"""Side of the thumbnails that novelty compares, px."""

LEAST_FAITHFULNESS = 0.01
"""Dice below which no pair is kept, whatever the calibration: a judge that sees nothing vouches for nothing."""

NO_SECOND_GROUP = 0.98
"""Highest correlation allowed where all images are of one group and nothing can be calibrated."""


def _bank(training: Arrays) -> torch.Tensor:
    thumbs = thumbnails(pixels_to_unit(training.images, training.info.intensity_range), THUMB)
    mirrored = thumbs.view(-1, THUMB, THUMB).flip(-1).flatten(1)
    return torch.cat([thumbs, mirrored])


def _real_correlation(bank: torch.Tensor, groups: tuple[str, ...], quantile: float) -> float:
    """Returns the quantile, over images, of the highest correlation with an image of another group."""
    names = np.array(groups)
    highest = []
    for i, group in enumerate(groups):
        others = torch.from_numpy(np.tile(names != group, 2))
        if others.any():
            highest.append(float(highest_correlation(bank[i:i + 1], torch.ones(1, bank.shape[1]), bank[others])))
    return float(np.quantile(highest, quantile)) if highest else NO_SECOND_GROUP


@torch.no_grad()
def predict_batched(predict: Predict, images: torch.Tensor, *, n_classes: int, batch_size: int = 16) -> torch.Tensor:
    """Returns the judge's probabilities (N, K, H, W) of unit images (N, C, H, W), on the CPU.

    Raises:
        UserError: unless it tells K = `n_classes` apart: of a class that it does not know it would have nothing to say.
    """
    with one_thread():
        found = torch.cat([predict(chunk).float().cpu() for chunk in images.split(batch_size)])
    if found.shape[1] != n_classes:
        raise UserError(f"judge or referee of {found.shape[1]} classes", rule=f"the pairs have {n_classes}, background "
                        "included", repair="train it on these classes, or leave it out")
    return found


def default_gates(predict: Predict | None, labelled: PairSet, *, training: ImageSet | None = None, size: int,  # noqa: PLR0913
                  settings: GateSettings | None = None, seam: SeamProbe | None = None,
                  shape: ShapeModel | None = None) -> Gates:
    """Returns gates calibrated on real images: `labelled` pairs for the judge, `training` images for novelty.

    Args:
        predict: unit images (B, C, size, size) -> probabilities (B, K, size, size); None leaves the judge's gates out.
        training: all images that the generator saw; the labelled ones if None.
        seam: a probe of `fit_seam_probe`, fitted on this generator at this size; None leaves the seam gate out.
        shape: a shape model fitted at this size; None leaves the plausibility gate out.
    """
    settings = settings or GateSettings()
    pairs = labelled.arrays(size)
    seen = (training or labelled).arrays(size)
    bank, spectrum = _bank(seen), spectrum_reference(seen, quantile=settings.spectrum_quantile)
    groups = (training or labelled).groups
    max_correlation = _real_correlation(bank, groups, settings.novelty_quantile)
    min_faithfulness, answers = 0.0, ""
    if predict is not None:
        probabilities = predict_batched(predict, pixels_to_unit(pairs.images, pairs.info.intensity_range),
                                        n_classes=pairs.info.n_classes)
        labels = torch.from_numpy(pairs.masks.astype(np.int64))
        there = labels_to_keep(labels).any(2).any(1)
        scores = faithfulness(probabilities, labels)[there]
        min_faithfulness = max(LEAST_FAITHFULNESS, settings.faithfulness * float(scores.median()))
        answers = sha256(probabilities.numpy().tobytes())
    facts = {"settings": settings.model_dump(), "faithfulness": min_faithfulness, "answers": answers,
             "correlation": max_correlation, "bank": sha256(bank.numpy().tobytes()),
             "spectrum": [spectrum.threshold, sha256(torch.cat([spectrum.mean, spectrum.sd]).numpy().tobytes())]}
    if seam is not None:  # no key without it: sets drawn before there were probes still resume
        facts["seam"] = seam.identity()
    if shape is not None:
        facts["shape"] = shape.content_hash()
    else:
        facts["settings"] = settings.model_dump(exclude={"plausibility"})
    return Gates(predict, bank, settings, min_faithfulness, max_correlation, hash_json(facts), seam, shape, spectrum)


def _verdict(scores: dict[str, float], gates: Gates, *, is_new: bool) -> Verdict:
    reasons = []
    if scores.get("faithfulness", 1.0) < gates.min_faithfulness:
        reasons.append(f"faithfulness {scores['faithfulness']:.2f} < {gates.min_faithfulness:.2f}")
    if scores.get("false_foreground", 0.0) > gates.settings.max_false_foreground:
        reasons.append(f"false_foreground {scores['false_foreground']:.2f} > {gates.settings.max_false_foreground:.2f}")
    if is_new and scores["correlation"] > gates.max_correlation:
        reasons.append(f"correlation {scores['correlation']:.3f} > {gates.max_correlation:.3f}")
    if gates.seam is not None and scores["seam"] > gates.seam.threshold:
        reasons.append(f"seam {scores['seam']:.2f} > {gates.seam.threshold:.2f}")
    if scores.get("plausibility", 1.0) < gates.settings.plausibility:
        reasons.append(f"plausibility {scores['plausibility']:.3f} < {gates.settings.plausibility:.3f}")
    if (gates.spectrum is not None and gates.settings.spectrum == "reject"
            and scores.get("spectrum", 0.0) > gates.spectrum.threshold):
        reasons.append(f"spectrum {scores['spectrum']:.2f} > {gates.spectrum.threshold:.2f}")
    return Verdict({k: round(v, 5) for k, v in scores.items()}, not reasons, "; ".join(reasons))


@torch.no_grad()
def run_gates(images: torch.Tensor, labels: torch.Tensor, gates: Gates, *,
              painted: torch.Tensor | None = None, around: torch.Tensor | None = None,
              is_new: bool = True) -> tuple[torch.Tensor, list[Verdict]]:
    """Returns the labels with false foreground set to ignore, (B, H, W), and one verdict per pair.

    Args:
        images: painted images, unit (B, C, H, W). labels: (B, H, W).
        painted: (B, H, W) bool, the pixels that are no source's, whose novelty is scored; all but the foreground if
            None.
        around: (B, H, W) bool, the pixels whose seam is looked for; all that are not `painted` if None.
        is_new: whether anything was painted. A real picture in another appearance is not: its correlation is noted and
            not judged, its labels hold everywhere, so that none becomes ignore and the judge must meet all of them.
    """
    layouts, near = labels, 2 * gates.settings.clear_px + 1
    keep = labels_to_keep(labels)
    outside = F.max_pool2d(keep[:, None].float(), near, stride=1, padding=near // 2)[:, 0] < 0.5
    outside = outside & (labels != IGNORE)
    fresh = ~keep if painted is None else painted
    region = (F.adaptive_avg_pool2d(fresh[:, None].float(), THUMB) > 0.5).float().flatten(1)
    columns = {"correlation": highest_correlation(thumbnails(images, THUMB), region, gates.bank)}
    if gates.predict is not None:
        probabilities = gates.predict(images).float().cpu()
        false = false_foreground(probabilities, outside, confidence=gates.settings.confidence)
        told = torch.where(outside & ~keep, IGNORE, labels) if is_new else labels
        columns["faithfulness"] = faithfulness(probabilities, told)
        if is_new:
            columns["false_foreground"] = false.sum((1, 2)) / outside.sum((1, 2)).clamp(min=1)
            labels = torch.where(false, IGNORE, labels)
    if gates.seam is not None:
        columns["seam"] = gates.seam.score(images, ~fresh if around is None else around)
    if gates.shape is not None:
        columns["plausibility"] = plausibility(gates.shape.percentile(layouts))
    if gates.spectrum is not None and images.shape[-2:] == (gates.spectrum.size,) * 2:  # elsewhere frequencies differ
        columns["spectrum"] = gates.spectrum.score(images)
    rows = [{name: float(column[i]) for name, column in columns.items()} for i in range(len(images))]
    return labels, [_verdict(row, gates, is_new=is_new) for row in rows]
