"""One fitted segmenter on labelled images that it has not seen: Dice and distances, with intervals over groups."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from segtrain.metrics import CaseScores, score_cases
from segtrain.report import interval, number
from segtrain.segmenter import Segmenter, predict_pair
from segtrain.statistics import Estimate, mean_interval
from synth.core.checks import UserError
from synth.core.files import claim_folder, write_json, write_text
from synth.core.pairs import Item, PairSet
from synth.core.space import enlarge, resize_image, to_channels
from synth.spectral import Alignment, FrequencyPrior

if TYPE_CHECKING:
    from rich.table import Table

METRICS = ("dice", "nsd", "hd95", "asd")
UNKNOWN = ("this segmenter was saved by a version that did not note its training images: whether one of these is among "
           "them is not known")


@dataclass(frozen=True)
class Scored:
    """What a segmenter scored.

    Attributes:
        cases: one by one. classes: names of the foreground classes. unit: of distances, "mm" or "px".
        means: by metric, over cases and classes, with 95 % intervals over groups; None where no case has a value.
        per_class: mean Dice of each class. notes: what to know when reading it.
    """

    cases: tuple[CaseScores, ...]
    classes: tuple[str, ...]
    unit: str
    means: dict[str, Estimate | None]
    per_class: dict[str, float]
    notes: tuple[str, ...]

    def table(self) -> Table:
        """Returns the means as a table for the terminal."""
        from rich.table import Table

        table = Table(title=f"{len(self.cases)} cases of {len({c.group for c in self.cases})} groups")
        for name in ("score", "mean", "95 %"):
            table.add_column(name, justify="left" if name == "score" else "right", no_wrap=True)
        for name, mean in self.means.items():
            unit = f" {self.unit}" if name in ("hd95", "asd") else ""
            ci = None if mean is None or mean.low is None else (mean.low, mean.high)
            table.add_row(f"{name}{unit}", "none" if mean is None else number(mean.mean), interval(ci))
        if len(self.classes) > 1:
            for name, value in self.per_class.items():
                table.add_row(f"dice of {name}", number(value), "")
        return table

    def as_json(self) -> dict[str, object]:
        """Returns what scores.json holds."""
        means = {name: None if m is None else {"mean": m.mean, "low": m.low, "high": m.high, "note": m.note}
                 for name, m in self.means.items()}
        return {"means": means, "dice_per_class": self.per_class, "unit": self.unit, "cases": len(self.cases),
                "groups": len({case.group for case in self.cases}), "notes": list(self.notes)}

    def as_csv(self) -> str:
        """Returns one line for each case and class; an empty field is a distance between two empty masks."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("name", "group", "class", "dice", "nsd", f"hd95_{self.unit}", f"asd_{self.unit}", "tp", "fp",
                       "fn"))
        for case in self.cases:
            for k, name in enumerate(self.classes):
                distances = ["" if d is None else f"{d:.4f}" for d in (case.hd95[k], case.asd[k])]
                rows.writerow((case.id, case.group, name, f"{case.dice[k]:.5f}", f"{case.nsd[k]:.5f}", *distances,
                               case.tp[k], case.fp[k], case.fn[k]))
        return text.getvalue()


def score(  # noqa: PLR0913 - what is scored, how it is read, how it is measured
        model_folder: str | Path, pairs: PairSet | str | Path, *, mask_map: str | None = None,
        out: str | Path | None = None, tolerance_px: float | None = None,
        align: FrequencyPrior | str | Path | None = None, strength: float = 1.0) -> Scored:
    """Returns what the segmenter of a run scores on labelled images, each at its own size.

    Intervals are over groups: what other patients would say. What another training run would say is not in them; for
    that, and for differences between trainings, there is `segtrain.compare`.

    Args:
        pairs: or their folder, read as the training images were; `mask_map` as in `load_pairs`.
        out: folder for scores.csv and scores.json.
        tolerance_px: of NSD; None = one pixel of the network's working resolution, at least one of the image.
        align, strength: as in `segtrain.predict`; all these images, without their masks, then decide the filter.

    Raises:
        UserError: if the segmenter, or a generator that drew for it, was trained with one of the images or groups, a
            pair was drawn by a generator, or model and pairs do not go together.
    """
    segmenter = Segmenter.load(model_folder)
    if not isinstance(pairs, PairSet):
        from synth.formats import load_pairs

        pairs = load_pairs(pairs, mask_map=mask_map, channels=segmenter.info.channels, like=segmenter.info)
    _check(segmenter, pairs)
    alignment = None
    if align is not None:
        align = align if isinstance(align, FrequencyPrior) else segmenter.training_spectrum(align)
        alignment = segmenter.fit_alignment(pairs, align, strength=strength)
    identity = {"model": segmenter.content_hash(), "ids": list(pairs.ids), "tolerance_px": tolerance_px,
                **({} if align is None else {"align": align.content_hash(), "strength": strength})}
    folder = None if out is None else claim_folder(Path(out), kind="score", identity=identity)
    notes = () if segmenter.taught else (UNKNOWN,)
    scored = _summarise(_score_all(segmenter, pairs, alignment, tolerance_px), pairs, notes)
    if folder is not None:
        write_text(folder / "scores.csv", scored.as_csv())
        write_json(folder / "scores.json", scored.as_json())
    return scored


def _check(segmenter: Segmenter, pairs: PairSet) -> None:
    if pairs.info.n_classes != segmenter.info.n_classes:
        raise UserError(pairs.where, rule=f"its classes are {list(pairs.info.classes)}, the segmenter's "
                        f"{list(segmenter.info.classes)}", repair="give masks of the same classes, perhaps by mask_map")
    for item, pair in zip(pairs.items, pairs, strict=True):
        if item.made is not None:
            raise UserError(f"{pairs.where}: {item.id}", rule="a generator drew this pair, and a segmenter is "
                            "scored on real ones", repair="leave drawn pairs out of the test set")
        if segmenter.taught is not None:
            _check_new(segmenter, item, pair.image, where=pairs.where)


def _check_new(segmenter: Segmenter, item: Item, image: np.ndarray, *, where: str) -> None:
    """Returns nothing; raises UserError if training knew the pixels (H, W[, 3]) of a test case, or its patient.

    A group that is named as its image says nothing: so are those of sets without groups.csv.
    """
    pixels, size, taught = to_channels(image), segmenter.size, segmenter.taught
    seen = enlarge(pixels, None, least=size)[0] if segmenter.config.tiles else resize_image(pixels, size)
    by = "by itself or through a generator that drew for it"
    if taught.has_image(seen) or taught.has_image(pixels):
        raise UserError(f"{where}: {item.id}", rule=f"this segmenter was trained with this image, {by}, so its score "
                        "would say nothing", repair="leave it out of the test set")
    if item.group != item.id and taught.has_group(item.group):
        raise UserError(f"{where}: {item.id}", rule=f"this segmenter was trained with images of group {item.group}, "
                        f"{by}", repair="leave that group out of the test set")


def _score_all(segmenter: Segmenter, pairs: PairSet, alignment: Alignment | None,
               tolerance_px: float | None) -> list[CaseScores]:
    in_mm = all(item.spacing is not None for item in pairs.items)
    cases: list[CaseScores] = []
    for item, pair in zip(pairs.items, pairs, strict=True):
        predicted = predict_pair(segmenter, pair, align=alignment)
        coarse = 1.0 if segmenter.config.tiles else max(predicted.shape) / segmenter.size
        cases += score_cases(predicted[None], torch.from_numpy(pair.mask)[None], ids=[item.id], groups=[item.group],
                             n_classes=segmenter.info.n_classes, spacings=[item.spacing] if in_mm else (),
                             tolerance_px=max(1.0, coarse) if tolerance_px is None else tolerance_px)
    return cases


def _summarise(cases: Sequence[CaseScores], pairs: PairSet, notes: tuple[str, ...]) -> Scored:
    means = {name: _mean(cases, name) for name in METRICS}
    classes = pairs.info.classes[1:]
    dice = np.array([case.dice for case in cases]).mean(axis=0)
    n_mm = sum(item.spacing is not None for item in pairs.items)
    if 0 < n_mm < len(pairs):
        notes = (*notes, f"spacing is known of {n_mm} of {len(pairs)} images only: distances are in px")
    if means["dice"].note:
        notes = (*notes, means["dice"].note)
    return Scored(tuple(cases), classes, "mm" if n_mm == len(pairs) else "px", means,
                  dict(zip(classes, dice.tolist(), strict=True)), notes)


def _mean(cases: Sequence[CaseScores], metric: str) -> Estimate | None:
    """Returns the mean over cases of each one's mean over the classes that have a value."""
    known = [(np.mean(values), case.group) for case in cases
             if (values := [v for v in getattr(case, metric) if v is not None])]
    if not known:
        return None
    return mean_interval(np.array([value for value, _ in known]), [group for _, group in known], seed=0)
