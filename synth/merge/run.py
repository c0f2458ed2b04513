"""`merge_labels`: one pair set from several annotators', with a weight for each pair and a report on everybody."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.files import write_json
from synth.core.pairs import PairSet
from synth.core.space import labels_to_keep
from synth.formats import encode_png, load_pairs, write_folder
from synth.merge.agree import dice_with_merged, mean_dice, pair_dice, vote_weights, weighted_shares
from synth.merge.read import Crowd, read_crowd
from synth.merge.staple import Patterns, patterns_of, staple, union_box

REPORT = "annotators.json"


class MergeSettings(Settings):
    """How masks are merged.

    Attributes:
        method: "staple" estimates truth and everybody's confusion of classes together; "staple_per_class" takes each
            class against all others; "soft" is staple with doubtful pixels ignored; "vote" weighs each annotator by the
            mean Dice with the others.
        band: of "soft": a label whose probability is less than this above 1/2 becomes 255.
        min_dice: of "vote": annotators who agree less with the others are left out.
        mask_map, channels: as in `synth.formats.load_pairs`.
    """

    method: Literal["staple", "staple_per_class", "vote", "soft"] = "staple"
    band: float = Field(0.2, ge=0, lt=0.5)
    min_dice: float = Field(0.5, ge=0, le=1)
    mask_map: str | None = None
    channels: Literal[1, 3] | None = None


@dataclass(frozen=True)
class Rater:
    """What is known of one annotator.

    Attributes:
        n_images: that it labelled. dice_with_others: mean over shared images, None without any. dice_with_merged: mean.
        used: False if it was left out. sensitivity, specificity: of each class, by name, None where it never occurs.
    """

    name: str
    n_images: int
    dice_with_others: float | None
    dice_with_merged: float
    used: bool
    sensitivity: dict[str, float | None]
    specificity: dict[str, float | None]


@dataclass(frozen=True)
class Merged:
    """One image's merged labels (H, W) and their probability (H, W) in [0, 1].

    Attributes:
        agreement: mean Dice of every two of its annotators, None with one. weight: of the pair, in [0, 1].
    """

    name: str
    labels: np.ndarray
    confidence: np.ndarray
    n_raters: int
    agreement: float | None
    weight: float


@dataclass(frozen=True)
class Merge:
    """The outcome; `left_out`: names of the images that nobody labelled who counts."""

    raters: list[Rater]
    images: list[Merged]
    left_out: list[str]


def _probabilities(patterns: Sequence[Patterns], settings: MergeSettings, *, weights: np.ndarray,
                   n_classes: int) -> list[np.ndarray]:
    """Returns for each image how probable each class is, (P, K), pattern by pattern."""
    n_raters = len(weights)
    if settings.method == "vote":
        return [weighted_shares(image.decisions, weights, n_classes) for image in patterns]
    if settings.method != "staple_per_class":
        return staple(patterns, n_classes=n_classes, n_raters=n_raters).posteriors
    single = []
    for k in range(1, n_classes):
        binary = [replace(p, decisions=np.where(p.decisions == IGNORE, IGNORE, p.decisions == k)) for p in patterns]
        single.append([w[:, 1] for w in staple(binary, n_classes=2, n_raters=n_raters).posteriors])
    joined = [np.stack([np.prod([1 - w for w in some], 0), *some], 1) for some in zip(*single, strict=True)]
    return [w / w.sum(1, keepdims=True) for w in joined]


def _decide(probable: np.ndarray, settings: MergeSettings) -> np.ndarray:
    """Returns the class (P,) uint8 of probabilities (P, K), 255 where the method leaves it open."""
    floor = {"vote": 0.5 + 1e-9, "soft": 0.5 + settings.band}.get(settings.method, 0.0)
    return np.where(probable.max(1) >= floor, probable.argmax(1), IGNORE).astype(np.uint8)


def _expand(silent: np.ndarray, image: Patterns | None, probable: np.ndarray | None,
            settings: MergeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and their probability, both (H, W): background outside the box, 255 where all are `silent`."""
    labels, confidence = np.zeros(silent.shape, np.uint8), np.ones(silent.shape)
    if image is not None:
        labels[image.box] = _decide(probable, settings)[image.index]
        confidence[image.box] = probable.max(1)[image.index]
    return np.where(silent, IGNORE, labels).astype(np.uint8), np.where(silent, 0.0, confidence)


def _rates(patterns: Sequence[Patterns], probable: Sequence[np.ndarray], r: int, classes: Sequence[str]
           ) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Returns sensitivity and specificity of annotator `r` for each foreground class, expected under `probable`."""
    n = len(classes)
    counts = np.zeros((n, n))
    for image, weights in zip(patterns, probable, strict=True):
        for d in range(n):
            said = image.decisions[:, r] == d
            counts[:, d] += (weights[said] * image.counts[said, None]).sum(0)
    sensitivity, specificity = {}, {}
    for k in range(1, n):
        true, false = counts[k].sum(), counts.sum() - counts[k].sum()
        sensitivity[classes[k]] = round(counts[k, k] / true, 5) if true > 0 else None
        wrong = counts[:, k].sum() - counts[k, k]
        specificity[classes[k]] = round(1 - wrong / false, 5) if false > 0 else None
    return sensitivity, specificity


def merge(crowd: Crowd, settings: MergeSettings) -> Merge:
    """Returns the merged labels of every image and what is known of every annotator.

    A pair's weight is the mean, over its annotators, of (Dice with the merged labels of this image) x (mean Dice with
    the merged labels of all images that somebody else labelled too). What an annotator marks where the merged label is
    255 counts as disagreement.

    Raises:
        UserError: if every annotator was left out.
    """
    classes = crowd.images.info.classes
    there, table = crowd.labelled(), pair_dice(crowd.masks, len(classes))
    reliability = mean_dice(table)
    weights = vote_weights(reliability, least=settings.min_dice if settings.method == "vote" else 0.0)
    used = weights > 0 if settings.method == "vote" else np.ones(len(weights), bool)
    if not used.any():
        raise UserError(f"min_dice={settings.min_dice:g}", rule="every annotator agrees less than this with the others",
                        repair="look at their masks, or lower min_dice")
    rows = [i for i in range(len(crowd.masks)) if (there[i] & used).any()]
    # Who is left out decides nothing, not even where somebody speaks; its own rates are of what the others say.
    boxes = {i: union_box(crowd.masks[i][used]) for i in rows}
    silent = {i: (crowd.masks[i][used] == IGNORE).all(0) for i in rows}
    marked = [i for i in rows if boxes[i] is not None]
    patterns = [patterns_of(crowd.masks[i], boxes[i]) for i in marked]
    probable = _probabilities(patterns, settings, weights=weights, n_classes=len(classes))
    at = {i: k for k, i in enumerate(marked)}
    flat = {i: _expand(silent[i], *((patterns[at[i]], probable[at[i]]) if i in at else (None, None)), settings)
            for i in rows}
    with_merged = np.full(there.shape, np.nan)
    for i in rows:
        for r in np.flatnonzero(there[i]):
            said = np.where(silent[i], IGNORE, crowd.masks[i][r])
            with_merged[i, r] = dice_with_merged(said, flat[i][0], len(classes))
    trust = _trust(with_merged, there & used)
    images = [_merged(crowd, i, flat[i], table=table[i], scores=with_merged[i] * trust, who=there[i] & used)
              for i in rows]
    raters = [Rater(name, int(there[:, r].sum()), _number(reliability[r]), float(_number(trust[r])), bool(used[r]),
                    *_rates(patterns, probable, r, classes)) for r, name in enumerate(crowd.raters)]
    return Merge(raters, images, [crowd.images.ids[i] for i in range(len(crowd.masks)) if i not in rows])


def _trust(with_merged: np.ndarray, counting: np.ndarray) -> np.ndarray:
    # Alone on an image everybody agrees with what was merged there: it says nothing. Without any other, the mean does.
    shared = np.where(counting.sum(1, keepdims=True) - counting > 0, with_merged, np.nan)
    known = np.isfinite(shared).sum(0)
    means = np.where(known > 0, np.nansum(shared, 0) / np.maximum(known, 1), np.nan)
    return np.where(known > 0, means, np.nanmean(means) if (known > 0).any() else 1.0)


def _merged(crowd: Crowd, i: int, found: tuple[np.ndarray, np.ndarray], *, table: np.ndarray, scores: np.ndarray,
            who: np.ndarray) -> Merged:
    agreement = float(np.nanmean(table)) if np.isfinite(table).any() else None
    return Merged(crowd.images.ids[i], *found, int(who.sum()), _number(agreement),
                  round(float(np.mean(scores[who])), 4))


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 5)


def _as_pairs(crowd: Crowd, merged: Merge) -> PairSet:
    by_name = {one.name: one for one in merged.images}

    def labelled(read: Callable[[], tuple[np.ndarray, np.ndarray | None]], name: str) -> tuple[np.ndarray, np.ndarray]:
        return read()[0], by_name[name].labels

    items = [replace(item, read=partial(labelled, item.read, item.id), weight=by_name[item.id].weight)
             for item in crowd.images.items if item.id in by_name]
    return PairSet(items, crowd.images.info, where=crowd.images.where)


def report_of(merged: Merge, settings: MergeSettings) -> dict[str, object]:
    """Returns what annotators.json holds."""
    images = {one.name: {"n_raters": one.n_raters, "agreement": one.agreement, "weight": one.weight,
                         "ignored_share": round(float((one.labels == IGNORE).mean()), 5)} for one in merged.images}
    return {"settings": settings.model_dump(mode="json"), "annotators": [asdict(rater) for rater in merged.raters],
            "images": images, "left_out": merged.left_out}


def check_settings(settings: MergeSettings) -> None:
    """Returns nothing; raises if a setting is given that the method does not look at.

    Raises:
        UserError: naming the setting and the method that it is of.
    """
    for name, method in (("band", "soft"), ("min_dice", "vote")):
        if name in settings.model_fields_set and settings.method != method:
            raise UserError(f"{name}={getattr(settings, name):g}", rule=f"method={settings.method} does not look at it",
                            repair=f"leave it out, or take method={method}")


def merge_labels(root: str | Path, settings: MergeSettings | None = None, *, out: str | Path | None = None) -> Merge:
    """Returns the merged labels of `root` (images/ and annotators/WHO/NAME.png); with `out`, also writes them there.

    `out` is a pair set with weights.csv, confidence/NAME.png (255 = certain) and annotators.json beside it: all or
    nothing.

    Raises:
        UserError: if masks are missing or wrong, a setting is of another method, or `out` is not empty.
    """
    settings = settings or MergeSettings()
    check_settings(settings)
    crowd = read_crowd(root, mask_map=settings.mask_map, channels=settings.channels)
    merged = merge(crowd, settings)
    if out is not None:
        _write(crowd, merged, settings, Path(out))
    return merged


def _write(crowd: Crowd, merged: Merge, settings: MergeSettings, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(str(out), rule="it exists and is not an empty folder", repair="choose another out=")
    if not any(labels_to_keep(torch.from_numpy(one.labels)).any() for one in merged.images):
        raise UserError(crowd.images.where, rule=f"with method={settings.method} no image keeps any foreground, since "
                        "its annotators nowhere agree on one", repair="look at their masks, or take method=staple")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.merge.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write_folder(_as_pairs(crowd, merged), temporary)
        (temporary / "confidence").mkdir()
        for one in merged.images:
            levels = np.rint(255 * one.confidence).astype(np.uint8)
            (temporary / "confidence" / f"{one.name}.png").write_bytes(encode_png(levels))
        write_json(temporary / REPORT, report_of(merged, settings))
        load_pairs(temporary)  # what is written is a set that training takes, or nothing is
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
