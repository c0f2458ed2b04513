"""SeamProbe: the network of the placebo test as a gate. It says of a pair how plainly its seam shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from synth.core.checks import UserError
from synth.core.device import compute_device
from synth.core.files import hash_json, replace_file, sha256, write_json
from synth.core.pairs import DataInfo
from synth.core.space import labels_to_keep
from synth.gates.seam import Paint, Shown, as_given, group_folds, paint_placebos, seam_folder, within_auc
from synth.gates.seam_net import SeamNet, SeamSettings, fit_seam_net, seam_logits

WEIGHTS, FACTS = "seam.safetensors", "seam.json"

HELD_OUT = 4
"""One of this many parts of the groups calibrates the threshold; the others train."""


@dataclass(frozen=True)
class SeamProbe:
    """A fitted network that looks for the seam of a pair.

    Attributes:
        threshold: score above which a pair is rejected.
        auc: mean score of the placebos that calibrated it: how well it sees the seams of its generator.
    """

    net: SeamNet
    threshold: float
    auc: float

    def score(self, images: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Returns how well kept and painted pixels can be told apart in each image, (B,) in [0, 1]; 0.5 = not at all.

        The AUC of kept pixels against all others of the image; 0.5 where nothing, or everything, was kept.

        Args:
            images: unit (B, C, S, S). keep: (B, S, S) bool.

        Raises:
            UserError: if the images have other channels than those that the probe was fitted on.
        """
        if images.shape[1] != self.net.in_channels:
            raise UserError(f"images of {images.shape[1]} channel(s)", rule=f"this seam probe was fitted on "
                            f"{self.net.in_channels}", repair="fit a probe with fit_seam_probe on this kind of data")
        return within_auc(seam_logits(self.net, images), keep.cpu()).nan_to_num(0.5).float()

    def identity(self) -> str:
        """Returns 16 hexadecimal digits over weights and threshold."""
        weights = b"".join(v.detach().cpu().contiguous().numpy().tobytes() for v in self.net.state_dict().values())
        return hash_json({"weights": sha256(weights), "widths": list(self.net.widths), "threshold": self.threshold})

    def save(self, folder: str | Path) -> None:
        """Writes the weights as safetensors and the rest as JSON into `folder`."""
        state = {k: v.detach().cpu().contiguous() for k, v in self.net.state_dict().items()}
        replace_file(Path(folder) / WEIGHTS, lambda p: save_file(state, p))
        write_json(Path(folder) / FACTS, {"channels": self.net.in_channels, "widths": list(self.net.widths),
                                          "threshold": self.threshold, "auc": self.auc})

    @classmethod
    def load(cls, folder: str | Path) -> SeamProbe:
        """Returns the probe saved in `folder`.

        Raises:
            UserError: if there is none.
        """
        facts_file, weights_file = Path(folder) / FACTS, Path(folder) / WEIGHTS
        if not facts_file.is_file() or not weights_file.is_file():
            raise UserError(str(folder), rule=f"no seam probe here ({FACTS} and {WEIGHTS})",
                            repair="give the folder that SeamProbe.save wrote")
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        net = SeamNet(facts["channels"], widths=tuple(facts["widths"]))
        net.load_state_dict(load_file(weights_file))
        return cls(net.to(compute_device()).eval(), facts["threshold"], facts["auc"])


def _quantile(scores: torch.Tensor, q: float) -> float:
    scores = scores[scores.isfinite()].numpy()
    return float(np.quantile(scores, q)) if len(scores) else 0.0


def fit_seam_probe(paint: Paint, images: torch.Tensor, labels: torch.Tensor, *, settings: SeamSettings,  # noqa: PLR0913
                   groups: Sequence[str], info: DataInfo, out: str | Path | None = None,
                   shown: Shown | None = as_given) -> SeamProbe:
    """Returns a probe fitted on placebos that `paint` leaves in unit images (N, C, S, S), with its threshold.

    The threshold is what the probe says, on groups it was not fitted on, where there is no seam: the `quantile` of
    its scores of decoys (kept pixels left out), or of the labelled foreground in the untouched real images where
    that is higher, for an object may look kept of itself; and never below `min_threshold`.

    Args:
        labels: (N, S, S), zeros where unknown. groups: (N,). info: what the pixels mean. shown: as `paint_placebos`.
        out: folder of the training run, None = a temporary one. The probe is saved there too.

    Raises:
        UserError: as `placebo_test`.
    """
    painted = paint_placebos(paint, images, labels, groups=groups, info=info, settings=settings, shown=shown)
    keep, rows = painted.placebos.keep, list(painted.placebos.rows)
    n_folds = min(HELD_OUT, max(2, len(set(painted.groups))))
    held = torch.from_numpy(group_folds(painted.groups, n_folds, seed=settings.seed)) == 0
    with seam_folder(out, painted, settings, kind="seam probe") as folder:
        net = fit_seam_net(painted.images[~held], keep[~held], folder / "net", settings, label="seam probe")
    logits = seam_logits(net, painted.images[held])
    decoys = within_auc(logits, painted.placebos.decoy[held], counted=~keep[held])
    untouched = within_auc(seam_logits(net, images[rows][held]), labels_to_keep(labels[rows][held]))
    threshold = max(settings.min_threshold, _quantile(decoys, settings.quantile),
                    _quantile(untouched, settings.quantile))
    probe = SeamProbe(net, threshold, float(within_auc(logits, keep[held]).mean()))
    if out is not None:
        probe.save(out)
    return probe
