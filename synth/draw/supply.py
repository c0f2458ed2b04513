"""Hardness-aware supply: of several times the wanted pairs, keep those that are hard for one model, true to another.

Hardness is the loss of a frozen judge, consistency the agreement of a referee of another architecture with the mask:
by one and the same model the two cancel, for what is hard for it is what it disagrees with. Samples are chosen, never
steered: an adversarial loss that guides the sampler itself costs realism (NAM, CVPR 2026). That paper maximises
min(kappa, CE) with kappa = 0.5, so beyond kappa nothing is gained by being harder. Its scale is that of one task's
pixels; as a rank it travels: 25 of its 1,128 unmined samples, 2.2 %, lay above. Here the hardest 1 - `clip` of a
shard's candidates are therefore no candidates for the hard part, and `clip` is a little lower than 0.978, since a judge
fitted on a handful of images finds defects hard, too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import Field

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.files import hash_json, sha256
from synth.core.pairs import Pair, PairSet
from synth.core.rng import sample_rng
from synth.core.space import labels_to_keep, pixels_to_unit
from synth.gates.gates import LEAST_FAITHFULNESS, Predict, predict_batched
from synth.gates.scores import faithfulness

log = logging.getLogger(__name__)

REASON = "supply"
"""Why a pair that passed the gates lies among the rejected: another one was chosen."""

LEAST_PROBABILITY = 1e-7
"""Probability below which the cross-entropy grows no further."""


class SupplySettings(Settings):
    """How many candidates are drawn for each wanted pair, and which of them are kept.

    Attributes:
        oversample: candidates that passed the gates for each wanted pair; 1 = off, the first ones are kept.
        hard_share: of the wanted pairs are the hardest consistent candidates; the rest is chosen at random among all
            others that passed the gates, as it would be without a supply.
        clip: quantile of a shard's hardness above which a candidate is likely a defect: it may be kept by chance only.
        min_consistency: lowest Dice of the referee with the mask of a hard pair, as a share of its median Dice on the
            labelled pairs.
    """

    oversample: float = Field(1.0, ge=1)
    hard_share: float = Field(0.5, ge=0, le=1)
    clip: float = Field(0.95, gt=0, le=1)
    min_consistency: float = Field(0.8, ge=0, le=1)


@dataclass(frozen=True)
class Supply:
    """The two models that choose, with what was calibrated on the labelled pairs.

    Attributes:
        judge: whose loss is the hardness. referee: whose Dice is the consistency.
        min_consistency: Dice from which a pair counts as consistent.
        identity: hash of settings, threshold and of both models' answers on the labelled images.
    """

    judge: Predict
    referee: Predict
    settings: SupplySettings
    min_consistency: float
    identity: str


def hardness(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the judge's loss on each pair, (B,): cross-entropy, mean over valid pixels, + 1 - soft Dice.

    Soft Dice is 2 sum p y / (sum p + sum y), mean over the foreground classes present in the mask, 0 where there are
    none. Cross-entropy alone would hardly see a small object.

    Args:
        probabilities: of the judge, (B, K, H, W). labels: (B, H, W), 255 = ignored.
    """
    valid = labels != IGNORE
    true = torch.where(valid, labels, 0)
    own = probabilities.gather(1, true[:, None])[:, 0].clamp(min=LEAST_PROBABILITY)
    entropy = -(own.log() * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    onehot = torch.nn.functional.one_hot(true, probabilities.shape[1]).movedim(-1, 1)[:, 1:] * valid[:, None]
    p = probabilities[:, 1:] * valid[:, None]
    size = onehot.sum((2, 3))
    dice = 2 * (p * onehot).sum((2, 3)) / (p.sum((2, 3)) + size).clamp(min=LEAST_PROBABILITY)
    there = (size > 0).float()
    return entropy + 1 - (dice * there).sum(1) / there.sum(1).clamp(min=1)


def select(hardness: Sequence[float], consistency: Sequence[float], *, quota: int, min_consistency: float,
           settings: SupplySettings, rng: torch.Generator) -> list[int]:
    """Returns the `quota` candidates to keep, in their own order; all of them where there are no more.

    The hard part, round(hard_share * quota), goes to the hardest of those that are consistent and no harder than the
    clip quantile (equals in their own order). Whatever it leaves open is chosen at random among all others.

    Args:
        hardness, consistency: of each candidate. min_consistency: the calibrated threshold of the latter.
        rng: the choice is a function of it and of the scores alone.
    """
    n = len(hardness)
    if n <= quota:
        return list(range(n))
    # "higher": of a few candidates none is left out, of many at most the share 1 - clip.
    highest = np.quantile(np.asarray(hardness), settings.clip, method="higher")
    fit = [i for i in range(n) if consistency[i] >= min_consistency and hardness[i] <= highest]
    hard = sorted(fit, key=lambda i: (-hardness[i], i))[:round(settings.hard_share * quota)]
    others = [i for i in range(n) if i not in set(hard)]
    order = torch.randperm(len(others), generator=rng).tolist()
    return sorted([*hard, *(others[k] for k in order[:quota - len(hard)])])


@torch.no_grad()
def score_supply(images: torch.Tensor, labels: torch.Tensor, supply: Supply) -> list[dict[str, float]]:
    """Returns hardness and consistency of each pair, rounded as they are recorded: the choice can be made again.

    Args:
        images: unit (B, C, H, W). labels: (B, H, W), 255 = ignored.
    """
    columns = {"hardness": hardness(supply.judge(images).float().cpu(), labels),
               "consistency": faithfulness(supply.referee(images).float().cpu(), labels)}
    return [{name: round(float(column[i]), 5) for name, column in columns.items()} for i in range(len(images))]


def choose_pairs(candidates: Sequence[Pair], *, quota: int, supply: Supply, seed: int,
                 shard: int) -> tuple[list[Pair], list[Pair]]:
    """Returns the chosen of a shard's candidates, and the others as rejected pairs, by their recorded scores."""
    scores = [pair.made.scores for pair in candidates]
    chosen = set(select([s["hardness"] for s in scores], [s["consistency"] for s in scores], quota=quota,
                        min_consistency=supply.min_consistency, settings=supply.settings,
                        rng=sample_rng(seed, REASON, shard)))
    left = [replace(pair, made=replace(pair.made, verdict="rejected", reason=REASON))
            for i, pair in enumerate(candidates) if i not in chosen]
    return [candidates[i] for i in sorted(chosen)], left


def default_supply(judge: Predict | None, referee: Predict | None, labelled: PairSet, *, size: int,
                   settings: SupplySettings) -> Supply | None:
    """Returns the supply calibrated on the real `labelled` pairs, None where `oversample` is 1.

    Args:
        judge, referee: unit images (B, C, size, size) -> probabilities (B, K, size, size), of two architectures.
            Without a referee the judge also says what is consistent, and hardly anything is hard *and* consistent.

    Raises:
        UserError: if there is to be a choice and no judge to make it.
    """
    if settings.oversample == 1:
        return None
    check_judge(settings, there=judge is not None)
    if referee is None:
        log.warning("supply without a referee: the judge says both what is hard and what is consistent, and the two "
                    "cancel. Repair: give a segmenter of another architecture as referee.")
        referee = judge
    pairs = labelled.arrays(size)
    images, labels = pixels_to_unit(pairs.images, pairs.info.intensity_range), torch.from_numpy(
        pairs.masks.astype(np.int64))
    answers = [predict_batched(predict, images, n_classes=pairs.info.n_classes) for predict in (judge, referee)]
    agreement = faithfulness(answers[1], labels)[labels_to_keep(labels).any(2).any(1)]
    least = max(LEAST_FAITHFULNESS, settings.min_consistency * float(agreement.median()))
    identity = hash_json({"settings": settings.model_dump(), "consistency": least,
                          "answers": [sha256(answer.numpy().tobytes()) for answer in answers]})
    return Supply(judge, referee, settings, least, identity)


def check_judge(settings: SupplySettings, *, there: bool) -> None:
    """Returns nothing; raises if more is drawn than wanted and no judge is `there` to choose.

    Raises:
        UserError: naming the setting.
    """
    if settings.oversample > 1 and not there:
        raise UserError(f"supply.oversample={settings.oversample:g}", rule="a judge has to say which candidates are "
                        "hard", repair="give judge= and referee=, two segmenters of different architecture (in Python: "
                        "supply=default_supply(...)), or set supply.oversample=1")
