"""Stored pseudo-labels that are made anew in rounds: train, relabel, weigh anew, until the labels no longer change."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from segtrain.metrics import count_pixels, dice
from segtrain.ranks import gathered
from segtrain.targets.ensemble import follow
from segtrain.targets.target import Target, from_labels
from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.space import top_class

if TYPE_CHECKING:
    from segtrain.scene import Scene


def agreement(labels: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
    """Returns w (B, H, W) = 1 - |y - p|, in [0, 1], of probabilities y and p (B, K, H, W).

    Of several classes half the sum of the differences, which of two is the foreground's difference.
    """
    return 1 - 0.5 * (labels - prob).abs().sum(dim=1)


def label_dice(old: torch.Tensor, new: torch.Tensor, *, n_classes: int) -> torch.Tensor:
    """Returns the Dice (B,) of labels (B, H, W) with those before, where these say anything, the mean over foreground.

    A class that neither shows does not count; of an image in which neither shows any it is nan.
    """
    counts = count_pixels(new, old, n_classes=n_classes)
    shown = torch.from_numpy(counts.tp + counts.fp + counts.fn > 0)
    found = (torch.from_numpy(dice(counts)) * shown).sum(dim=1) / shown.sum(dim=1).clamp(min=1)
    return torch.where(shown.any(dim=1), found, torch.nan)


class Relabelled(Settings):
    """Slot member `relabelled`: stored pseudo-labels, replaced in every stage by what the stage's teacher says.

    It says it of the whole un-augmented image, once, when a stage first shows it. If the labels of a whole stage have a
    mean Dice with those before above `settled`, later stages leave them as they are. Until the first teacher, a pixel
    weighs what the stored confidence says. From then on it is the image's mean confidence times w = 1 - |y - p|, p the
    average of what the teachers have said of the image under every augmentation: where the label and that part, the
    label is the less trusted.

    Attributes:
        beta: of that average, per look at an image.
    """

    settled: float = Field(0.98, gt=0, le=1)
    beta: float = Field(0.99, ge=0, le=0.995)
    needs: ClassVar[tuple[str, ...]] = ("stored", "whole")

    def __call__(self, scene: Scene, branch: str) -> Target:
        """Returns the target (U, K, H, W) for the clean images; weights too.

        Raises:
            UserError: if the topology has no stages, or there is nothing stored.
        """
        if scene.topology.n_stages < 2:
            raise UserError("source relabelled", rule="labels are made anew by the stages of a run, and this topology "
                            "has none", repair="write topology: {staged: {n: 3}}")
        if "stored_labels" not in scene.batch:
            raise UserError("source relabelled", rule="there are no stored pseudo-labels",
                            repair="pass stored= (data.stored on the command line)")
        return Target(*scene.once(f"relabelled {self.settled:g} {self.beta:g}", lambda: self._look(scene)))

    def _look(self, scene: Scene) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        labels, confidence = self._labels(scene), scene.batch["stored_confidence"]
        if scene.topology.stage:
            told = scene.batch["stored_labels"] != IGNORE
            image = (confidence * told).sum((1, 2)) / told.sum((1, 2)).clamp(min=1)
            confidence = image[:, None, None].expand(labels.shape)
        said = from_labels(scene.warp.move(labels, nearest=True), scene.n_classes)
        inside = scene.warp.known(torch.ones_like(said.valid))
        weight = scene.warp.move(confidence, nearest=True) * said.valid
        if scene.topology.stage:
            prob = scene.said("teacher").logits.float().softmax(dim=1)
            weight = weight * agreement(said.prob, follow(scene, "relabelled_prob", prob, beta=self.beta)[1])
        scene.stats["label_weight"] = weight.mean()
        return said.prob, said.hard, weight, said.valid & inside

    def _labels(self, scene: Scene) -> torch.Tensor:
        # Labels (U, H, W) of the un-augmented images, those made anew where this stage's are due.
        memory, stage, rows = scene.memory, scene.topology.stage, scene.batch["unlabelled_rows"]
        if stage and not self._is_settled(scene):
            every = gathered(rows.to(scene.clean.device)).tolist()
            if any(int(memory.get(f"relabelled_in {row}", 0)) < stage for row in every):
                self._relabel(scene, every)
        if stage:
            scene.stats["label_dice"] = self._dice(scene, stage)
            scene.stats["settled"] = torch.tensor(float(self._is_settled(scene)))
        stored = scene.batch["stored_labels"]
        found = [memory.get(f"relabelled {row}", stored[i]) for i, row in enumerate(rows.tolist())]
        return torch.stack([labels.to(stored.device, stored.dtype) for labels in found])

    def _relabel(self, scene: Scene, every: list[int]) -> None:
        memory, stage = scene.memory, scene.topology.stage
        new = top_class(scene.topology.teacher(scene.batch["unlabelled"], "teacher").logits).to(torch.uint8)
        stored = scene.batch["stored_labels"].to(torch.uint8)
        for row, labels, first in zip(every, gathered(new).cpu(), gathered(stored).cpu(), strict=True):
            if int(memory.get(f"relabelled_in {row}", 0)) == stage:
                continue
            old = memory.get(f"relabelled {row}", first)
            counted = memory.get(f"label_dice {stage}", torch.zeros(2, dtype=torch.float64))
            like = label_dice(old[None].long(), labels[None].long(), n_classes=scene.n_classes)[0]
            if not like.isnan():  # images of background alone would make any labels look settled
                memory[f"label_dice {stage}"] = counted.cpu() + torch.stack([like, torch.ones_like(like)])
            memory[f"relabelled {row}"] = labels.clone()
            memory[f"relabelled_in {row}"] = torch.tensor(stage, dtype=torch.uint8)

    def _dice(self, scene: Scene, stage: int) -> torch.Tensor:
        total, n = scene.memory.get(f"label_dice {stage}", torch.zeros(2)).tolist()
        return torch.tensor(total / n if n else 1.0)

    def _is_settled(self, scene: Scene) -> bool:
        # Of the stages that are over: one whose labels are those of the stage before. Stages after it relabel nothing.
        over = range(1, scene.topology.stage)
        return any(f"label_dice {s}" in scene.memory and float(self._dice(scene, s)) > self.settled for s in over)


ROUNDS: dict[str, type[Settings]] = {"relabelled": Relabelled}
"""Sources of this module by the name that method files use."""
