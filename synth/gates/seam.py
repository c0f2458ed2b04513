"""The placebo test: can a network find where an image was kept, although the kept place holds no object?

If it can, the transition itself gives the mask away, and a segmenter trained on such pairs may learn the seam in the
place of the object. The question and its null:

- Everything but a placebo is painted anew. A network learns on some groups where the placebo is; on the others its
  `auc` is, within each image, the chance that a random kept pixel gets a higher probability than a random pixel of
  all the rest (no ring left out: the transition is part of the question), then the mean over images.
- A placebo's place is not uniform: it avoids the object, and the frame's rim. What that alone gives is `chance_auc`,
  the same score of a decoy, drawn by the same law for the same image but never kept. Kept pixels are left out on
  either side of it, or a decoy that happens to overlap the placebo would inherit what is being tested.
- `paired_auc` sets the placebo against its decoy, pixels of both left out. The two are exchangeable where nothing can
  be found, so its null is 0.5 exactly, whatever the network has learnt about places: it is the one to test.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from synth.core.checks import UserError
from synth.core.files import claim_folder, sha256
from synth.core.pairs import DataInfo
from synth.core.rng import derive_seed, sample_rng
from synth.core.space import pixels_to_unit, unit_to_pixels
from synth.gates.placebo import Placebos, draw_placebo
from synth.gates.seam_net import SeamSettings, fit_seam_net, seam_logits

log = logging.getLogger(__name__)

Paint = Callable[[torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]
"""Unit images (B, C, H, W), keep (B, H, W) bool, one seed per image -> painted unit images (B, C, H, W)."""

Shown = Callable[[torch.Tensor], torch.Tensor]
"""Unit images (B, C, H, W) -> the same as their kept pixels will appear (through a codec, say)."""


def as_given(images: torch.Tensor) -> torch.Tensor:
    """Returns unit `images` (B, C, H, W): how a painter shows what it keeps that keeps it bit for bit."""
    return images


THRESHOLDS = np.linspace(0.02, 0.98, 49)
"""Probabilities among which that of the best Dice is chosen."""


@dataclass(frozen=True)
class SeamResult:
    """What the placebo test found; `_lo` and `_hi` bound 95 % of a bootstrap over groups.

    Attributes:
        auc: mean over held-out images of the AUC of kept pixels against all others of the image.
        dice: mean Dice with the keep mask, at the threshold that is best on the training groups.
        paired_auc: of kept pixels against those of the decoy alone; 0.5 = no seam.
        chance_auc, chance_dice: the scores of the decoys, kept pixels left out: what the place alone gives away.
        n_keep_pixels: in all images together.
    """

    auc: float
    auc_lo: float
    auc_hi: float
    dice: float
    dice_lo: float
    dice_hi: float
    paired_auc: float
    paired_lo: float
    paired_hi: float
    chance_auc: float
    chance_dice: float
    n_images: int
    n_groups: int
    n_keep_pixels: int


@dataclass(frozen=True)
class PaintedPlacebos:
    """Placebos with everything around them painted: unit images (M, C, S, S), as they would come off the disk."""

    images: torch.Tensor
    placebos: Placebos
    groups: tuple[str, ...]


def within_auc(scores: torch.Tensor, positive: torch.Tensor, *, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the AUC of each image, (B,) in [0, 1]: P(score of a positive > of a negative) + P(equal) / 2.

    From ranks, ties sharing their mean rank (Mann and Whitney 1947). NaN where one of the two sides is empty.

    Args:
        scores: (B, H, W). positive: (B, H, W) bool. counted: (B, H, W) bool, pixels of either side that count; all
            if None.
    """
    counted = torch.ones_like(positive) if counted is None else counted
    out = []
    for score, yes, use in zip(scores, positive, counted, strict=True):
        yes = yes[use].numpy()
        n_yes, n_no = int(yes.sum()), int((~yes).sum())
        if not n_yes or not n_no:
            out.append(float("nan"))
            continue
        ranks = stats.rankdata(score[use].numpy())
        out.append((float(ranks[yes].sum()) - n_yes * (n_yes + 1) / 2) / (n_yes * n_no))
    return torch.tensor(out, dtype=torch.float64)


def within_dice(predicted: torch.Tensor, truth: torch.Tensor, *, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the Dice of each image, (B,), of predicted and truth (B, H, W) bool, over `counted` (B, H, W) alone."""
    counted = torch.ones_like(truth) if counted is None else counted
    a, b = predicted & counted, truth & counted
    return 2 * (a & b).sum((1, 2)).double() / (a.sum((1, 2)) + b.sum((1, 2))).clamp(min=1)


def group_folds(groups: Sequence[str], n_folds: int, *, seed: int) -> np.ndarray:
    """Returns the fold of each image, (N,): groups in random order, each into the fold with the fewest images.

    Raises:
        UserError: if there are fewer groups than folds.
    """
    names = sorted(set(groups))
    if len(names) < n_folds:
        raise UserError(f"{len(names)} group(s) with room for a placebo", rule=f"{n_folds} parts of them are needed, "
                        "for images of one group must not be on both sides", repair="give images of more groups")
    order = torch.randperm(len(names), generator=sample_rng(seed, "seam folds")).tolist()
    sizes, fold = [0] * n_folds, {}
    for name in (names[i] for i in order):
        fold[name] = min(range(n_folds), key=sizes.__getitem__)
        sizes[fold[name]] += sum(g == name for g in groups)
    return np.array([fold[g] for g in groups])


def paint_placebos(paint: Paint, images: torch.Tensor, labels: torch.Tensor, *, groups: Sequence[str],
                   info: DataInfo, settings: SeamSettings,
                   shown: Shown | None = as_given) -> PaintedPlacebos:
    """Returns unit images (N, C, S, S) painted but for a placebo each; those without room for one are left out.

    The kept place is written over what was painted and the whole is rounded to the data's grey levels, so that the
    test sees what a file would hold: no seam of rounding on one side alone.

    Args:
        labels: (N, S, S), zeros where unknown. groups: (N,).
        shown: how the painter shows what it keeps; None = as it painted it, keeping no pixel to the bit.

    Raises:
        UserError: if the images are not square, or none has room.
    """
    if images.shape[-1] != images.shape[-2]:
        raise UserError(f"images of {images.shape[-2]} x {images.shape[-1]} px", rule="they are turned by 90 degrees, "
                        "so they must be square", repair="resize them to one side")
    placebos = draw_placebo(labels, seed=settings.seed, groups=groups)
    if not placebos.rows:
        raise UserError(f"{len(images)} image(s)", rule="none has background enough for a placebo",
                        repair="add unlabelled images, or take a larger size")
    rows, done = list(placebos.rows), []
    for start in range(0, len(rows), settings.paint_batch):
        some = rows[start:start + settings.paint_batch]
        source, keep = images[some], placebos.keep[start:start + settings.paint_batch]
        painted = paint(source, keep, [derive_seed(settings.seed, "placebo", i) for i in some]).cpu().float()
        unit = painted if shown is None else torch.where(keep[:, None], shown(source).cpu().float(), painted)
        done.append(pixels_to_unit(unit_to_pixels(unit, info.intensity_range, info.dtype), info.intensity_range))
        log.info("placebos: %d of %d images painted", start + len(some), len(rows))
    return PaintedPlacebos(torch.cat(done), placebos, tuple(groups[i] for i in rows))


@contextmanager
def seam_folder(out: str | Path | None, painted: PaintedPlacebos, settings: SeamSettings, *,
                kind: str) -> Iterator[Path]:
    """Returns a context with the folder to train in: `out`, held for this very test, or a temporary one if None.

    Raises:
        UserError: if `out` holds something else.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="seam-") as folder:
            yield Path(folder)
        return
    digest = sha256(painted.images.numpy().tobytes() + painted.placebos.keep.numpy().tobytes())[:16]
    yield claim_folder(Path(out), kind=kind, identity={"settings": settings.model_dump(mode="json"),
                                                       "painted": digest, "groups": list(painted.groups)})


def mean_over_groups(values: np.ndarray, groups: Sequence[str], *, seed: int,
                     n_resamples: int) -> tuple[float, float, float]:
    """Returns the mean of values (N,) over images and a 95 % BCa interval of it over groups: (mean, low, high).

    NaN counts as no image. Where BCa has no answer the percentile interval is taken; without spread, a point.
    """
    there = np.isfinite(values)
    values = values[there]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    names, index = np.unique(np.asarray(groups)[there], return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    mean = float(values.mean())
    if len(names) < 2 or np.ptp(sums / counts) < 1e-12:
        return mean, mean, mean

    def ratio(s: np.ndarray, c: np.ndarray, axis: int) -> np.ndarray:
        return s.sum(axis=axis) / c.sum(axis=axis)

    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"):
            found = stats.bootstrap((sums, counts), ratio, paired=True, vectorized=True, n_resamples=n_resamples,
                                    method=method, rng=np.random.default_rng(derive_seed(seed, "seam bootstrap")))
        low, high = (float(x) for x in found.confidence_interval)
        if np.isfinite(low) and np.isfinite(high):
            break
    return mean, low, high


def _best_threshold(probabilities: torch.Tensor, keep: torch.Tensor) -> float:
    dice = [float(within_dice(probabilities > t, keep).mean()) for t in THRESHOLDS]
    return float(THRESHOLDS[int(np.argmax(dice))])


def placebo_test(paint: Paint, images: torch.Tensor, labels: torch.Tensor, *, settings: SeamSettings,  # noqa: PLR0913
                 groups: Sequence[str], info: DataInfo, out: str | Path | None = None,
                 shown: Shown | None = as_given) -> SeamResult:
    """Returns how well a network finds placebos that `paint` left in unit images (N, C, S, S); see the module.

    Args:
        labels: (N, S, S), zeros where unknown. groups: (N,); each is held out once.
        info: what the pixels mean: the grey levels to which painted images are rounded. shown: as `paint_placebos`.
        out: folder of the training runs, one per fold; running again resumes them. None = a temporary one.

    Raises:
        UserError: for too few groups, images without room, or an `out` that holds another run.
    """
    painted = paint_placebos(paint, images, labels, groups=groups, info=info, settings=settings, shown=shown)
    keep, decoy = painted.placebos.keep, painted.placebos.decoy
    fold = torch.from_numpy(group_folds(painted.groups, settings.folds, seed=settings.seed))
    columns = {k: np.zeros(len(keep)) for k in ("auc", "dice", "paired", "chance_auc", "chance_dice")}
    with seam_folder(out, painted, settings, kind="placebo") as folder:
        for k in range(settings.folds):
            held = fold == k
            net = fit_seam_net(painted.images[~held], keep[~held], folder / f"fold-{k}", settings,
                               label=f"seam {k + 1}/{settings.folds}")
            # Ranks are taken of logits: probabilities near 0 and 1 round to ties.
            logits = seam_logits(net, painted.images[held])
            found = logits.sigmoid() > _best_threshold(seam_logits(net, painted.images[~held]).sigmoid(), keep[~held])
            columns["auc"][held] = within_auc(logits, keep[held])
            columns["paired"][held] = within_auc(logits, keep[held], counted=keep[held] ^ decoy[held])
            columns["dice"][held] = within_dice(found, keep[held])
            columns["chance_auc"][held] = within_auc(logits, decoy[held], counted=~keep[held])
            columns["chance_dice"][held] = within_dice(found, decoy[held], counted=~keep[held])
    means = {k: mean_over_groups(columns[k], painted.groups, seed=settings.seed, n_resamples=settings.n_resamples)
             for k in ("auc", "dice", "paired")}
    return SeamResult(*means["auc"], *means["dice"], *means["paired"], float(np.nanmean(columns["chance_auc"])),
                      float(columns["chance_dice"].mean()), len(keep), len(set(painted.groups)), int(keep.sum()))
