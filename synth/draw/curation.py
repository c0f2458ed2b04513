"""Which pixels of a drawn pair may teach, and whether it may at all: one set of rules for every engine.

Two rules, both off unless asked for. A pixel whose loss under a judge that was trained on real pairs exceeds `ignore`
times the mean loss of its class on real images becomes 255 (FreeMask, Yang et al. 2023, with 1.25): its label is likely
no longer true, and no other label is known for it; a pair that loses all its foreground that way is rejected. A pair is
rejected whose mask a referee, a network of another architecture, does not find again. Hardness and budget are the
supply's (`synth.draw.supply`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.files import hash_json, sha256
from synth.core.pairs import PairSet
from synth.core.space import labels_to_keep, pixels_to_unit
from synth.draw.supply import LEAST_PROBABILITY
from synth.gates import Verdict
from synth.gates.gates import LEAST_FAITHFULNESS, Predict, predict_batched
from synth.gates.scores import faithfulness

log = logging.getLogger(__name__)

LEAST_MEAN = 0.01
"""Mean loss, in nats, below which no class counts as known: a judge that is sure of every pixel it was trained on would
else leave no drawn pixel its label."""


BARE = "no foreground left"
"""Why a pair goes that had foreground before its unlikely pixels lost their labels, and has none now."""


class CurateSettings(Settings):
    """Which rules are on.

    Attributes:
        ignore: a pixel's loss, as a multiple of its class's mean loss on real images, from which it becomes 255;
            FreeMask has 1.25. null = off.
        kept_too: whether that holds for pixels that are a real image's own, too. Their labels are true by
            construction where a generator kept them.
        min_agreement: lowest Dice of the referee with the mask, as a share of its median Dice on real pairs; 0 = off.
    """

    ignore: float | None = Field(None, gt=0)
    kept_too: bool = False
    min_agreement: float = Field(0.0, ge=0, le=1)

    @property
    def is_off(self) -> bool:
        """Whether no rule is on."""
        return self.ignore is None and self.min_agreement == 0


@dataclass(frozen=True)
class ClassLosses:
    """Mean loss (nats) of each class's pixels on real images; inf for a class that none of them shows.

    Attributes:
        of: whether the judge was "trained" on these images, so that the means are too low, or they were "held out".
    """

    means: tuple[float, ...]
    of: Literal["trained", "held out"]


@dataclass(frozen=True)
class Curation:
    """The rules with what was calibrated on real pairs.

    Attributes:
        judge: whose loss decides over pixels. referee: whose Dice decides over pairs; None if it does not.
        losses: None where no pixel is judged. min_agreement: Dice from which a pair stays.
        identity: hash of settings, thresholds, and both models' answers on the real images.
    """

    judge: Predict | None
    referee: Predict | None
    settings: CurateSettings
    losses: ClassLosses | None
    min_agreement: float
    identity: str


def pixel_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns -log p of each pixel's own class, (B, H, W), nats; 0 where labels (B, H, W) are 255.

    Args:
        probabilities: of the judge, (B, K, H, W).
    """
    valid = labels != IGNORE
    own = probabilities.gather(1, labels.masked_fill(~valid, 0)[:, None])[:, 0]
    return -own.clamp(min=LEAST_PROBABILITY).log() * valid


def class_losses(parts: Sequence[tuple[Predict, PairSet]], *, size: int, of: Literal["trained", "held out"]
                 ) -> ClassLosses:
    """Returns the mean loss of each class over several judges, each on its own real pairs.

    One judge with pairs that it did not see, or, with few labels, a judge for each fold of a cross-fit with the pairs
    that this one was not shown: then the means are not those of pixels known by heart.
    """
    k = parts[0][1].info.n_classes
    total, n = torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
    for predict, pairs in parts:
        images, labels = real_pairs(pairs, size)
        loss = pixel_loss(predict_batched(predict, images, n_classes=k), labels).double()
        for c in range(k):
            total[c] += loss[labels == c].sum()
            n[c] += (labels == c).sum()
    means = torch.where(n > 0, (total / n.clamp(min=1)).clamp(min=LEAST_MEAN), torch.inf)
    return ClassLosses(tuple(means.tolist()), of)


def real_pairs(pairs: PairSet, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns unit images (N, C, S, S) and labels (N, S, S) of `pairs` at `size` px."""
    arrays = pairs.arrays(size)
    return pixels_to_unit(arrays.images, arrays.info.intensity_range), torch.from_numpy(arrays.masks.astype(np.int64))


def ignore_unlikely(probabilities: torch.Tensor, labels: torch.Tensor, losses: ClassLosses, *, factor: float,
                    protected: torch.Tensor | None = None) -> torch.Tensor:
    """Returns labels (B, H, W) with 255 where the judge's loss exceeds `factor` times the mean of the pixel's class.

    Args:
        probabilities: of the judge, (B, K, H, W). protected: (B, H, W) bool, pixels that keep their label.
    """
    limits = factor * torch.tensor([*losses.means, torch.inf], dtype=torch.float64)
    of_class = labels.masked_fill(labels == IGNORE, len(losses.means))
    unlikely = pixel_loss(probabilities, labels).double() > limits[of_class]
    if protected is not None:
        unlikely = unlikely & ~protected
    return labels.masked_fill(unlikely, IGNORE)


@torch.no_grad()
def curate_batch(images: torch.Tensor, labels: torch.Tensor, verdicts: Sequence[Verdict], curation: Curation, *,
                 kept: torch.Tensor) -> tuple[torch.Tensor, list[Verdict]]:
    """Returns the labels (B, H, W) and verdicts after the rules that are on; each adds its score.

    Scores are `ignored`, the share of the pixels with a label that lost it, and `agreement`, of the labels that are
    left, since a referee should not be asked for what nobody shall learn.

    Args:
        images: unit (B, C, H, W). labels: (B, H, W), 255 = ignored. kept: (B, H, W) bool, a real image's own pixels.
    """
    settings, columns = curation.settings, {}
    bare = torch.zeros(len(labels), dtype=torch.bool)
    if settings.ignore is not None:
        before = labels
        labels = ignore_unlikely(curation.judge(images).float().cpu(), labels, curation.losses, factor=settings.ignore,
                                 protected=None if settings.kept_too else kept)
        had = (before != IGNORE).sum((1, 2))
        bare = labels_to_keep(before).any(2).any(1) & ~labels_to_keep(labels).any(2).any(1)
        columns["ignored"] = (had - (labels != IGNORE).sum((1, 2))) / had.clamp(min=1)
    if settings.min_agreement:
        columns["agreement"] = faithfulness(curation.referee(images).float().cpu(), labels)
    rows = [{name: round(float(column[i]), 5) for name, column in columns.items()} for i in range(len(images))]
    return labels, [_after(verdict, row, curation, is_bare=one)
                    for verdict, row, one in zip(verdicts, rows, bare.tolist(), strict=True)]


def _after(verdict: Verdict, scores: dict[str, float], curation: Curation, *, is_bare: bool) -> Verdict:
    scores, reasons = {**verdict.scores, **scores}, [verdict.reason] if verdict.reason else []
    if is_bare:
        reasons.append(BARE)
    if curation.settings.min_agreement and scores["agreement"] < curation.min_agreement:
        reasons.append(f"agreement {scores['agreement']:.2f} < {curation.min_agreement:.2f}")
    return Verdict(scores, not reasons, "; ".join(reasons))


def default_curation(judge: Predict | None, referee: Predict | None, labelled: PairSet, *, size: int,
                     settings: CurateSettings, held_out: PairSet | None = None) -> Curation | None:
    """Returns the rules calibrated on real pairs, None if all are off.

    Args:
        judge, referee: unit images (B, C, size, size) -> probabilities (B, K, size, size), of two architectures.
        labelled: real pairs, which judge and referee may have been trained on. held_out: real pairs that neither was;
            both are calibrated on them where given.

    Raises:
        UserError: if a rule is on and the model is missing that it asks, or a group of `held_out` is in `labelled`.
    """
    if settings.is_off:
        return None
    check_models(settings, judge=judge is not None, referee=referee is not None)
    if held_out is not None:
        _check_apart(held_out, labelled)
    real = labelled if held_out is None else held_out
    losses, least, answers = None, 0.0, []
    if settings.ignore is not None:
        answers.append(predict_batched(judge, real_pairs(real, size)[0], n_classes=real.info.n_classes))
        losses = class_losses([(judge, real)], size=size, of="trained" if held_out is None else "held out")
        if held_out is None:
            log.warning("curate.ignore: mean losses are those of the labelled pairs, which the judge may know by "
                        "heart: more pixels become ignore than should. Repair: give held-out pairs (data.held_out=)")
    if settings.min_agreement:
        images, labels = real_pairs(real, size)
        answers.append(predict_batched(referee, images, n_classes=real.info.n_classes))
        scores = faithfulness(answers[-1], labels)[labels_to_keep(labels).any(2).any(1)]
        least = max(LEAST_FAITHFULNESS, settings.min_agreement * float(scores.median()))
    identity = hash_json({"settings": settings.model_dump(), "losses": losses and [losses.means, losses.of],
                          "agreement": least, "answers": [sha256(a.numpy().tobytes()) for a in answers]})
    return Curation(judge, referee, settings, losses, least, identity)


def check_models(settings: CurateSettings, *, judge: bool, referee: bool) -> None:
    """Returns nothing; raises if a rule is on and the model that it asks is not there.

    Raises:
        UserError: naming the setting and the model.
    """
    for name, on, there, role in (("ignore", settings.ignore is not None, judge, "judge"),
                                  ("min_agreement", settings.min_agreement > 0, referee, "referee")):
        if on and not there:
            raise UserError(f"curate.{name}", rule=f"it asks the {role}, and there is none",
                            repair=f"give {role}=DIR, a fitted segmenter, or leave curate.{name} out")


def _check_apart(held_out: PairSet, labelled: PairSet) -> None:
    shared = sorted(set(held_out.groups) & set(labelled.groups))
    if shared:
        raise UserError(f"{held_out.where}: group {shared[0]}", rule="a held-out pair's group is among the labelled "
                        f"ones of {labelled.where}", repair="take its pairs out of one of the two")
