"""ShapeModel: what was fitted. It encodes, draws, and says how plausible a label map is among real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from synth.core.checks import IGNORE, UserError
from synth.core.files import hash_json, replace_file, sha256, write_json
from synth.core.space import labels_to_onehot, top_class
from synth.core.taught import Taught
from synth.layouts.shape.net import ShapeNet, divergence, reconstruction

WEIGHTS, FACTS = "shape.safetensors", "shape.json"


@dataclass(frozen=True)
class ShapeModel:
    """A fitted shape model; always on the CPU, where a layout is drawn.

    Attributes:
        classes: names, background first.
        calibration: energies of real maps held aside, mildly transformed, in ascending order.
        held_aside: how many maps those were; 0 = there were too few groups, and they are training maps.
        taught: what it was fitted on; None = not known.
    """

    net: ShapeNet
    classes: tuple[str, ...]
    calibration: tuple[float, ...]
    held_aside: int
    taught: Taught | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Side of the label maps, px."""
        return self.net.size

    @torch.no_grad()
    def encode(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the mean codes (B, D) of labels (B, S, S), 255 = unknown."""
        return self._in_parts(labels, lambda some: self.net.encode(labels_to_onehot(some, len(self.classes)))[0])

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the most probable labels (B, S, S) for codes (B, D)."""
        return top_class(self.net.decode(codes))

    @torch.no_grad()
    def energy(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the negative evidence bound per known pixel, nats, (B,), of labels (B, S, S), at the code's mean."""
        return self._in_parts(labels, self._energy)

    def percentile(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the share (B,) in [0, 1] of real maps held aside with less energy than labels (B, S, S)."""
        known = np.array(self.calibration)
        return torch.from_numpy(np.searchsorted(known, self.energy(labels).double().numpy()) / len(known)).float()

    def _energy(self, labels: torch.Tensor) -> torch.Tensor:
        onehot = labels_to_onehot(labels, len(self.classes))
        mean, logvar = self.net.encode(onehot)
        bound = reconstruction(onehot, self.net.decode(mean)) + divergence(mean, logvar)
        return bound / (labels != IGNORE).sum((1, 2)).clamp(min=1)

    def _in_parts(self, labels: torch.Tensor, ask: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if tuple(labels.shape[1:]) != (self.size, self.size):
            raise UserError(f"labels {tuple(labels.shape[1:])}", rule=f"this shape model was fitted at {self.size} px",
                            repair="fit one at that size, or resize the labels")
        return torch.cat([ask(some) for some in labels.cpu().long().split(32)])

    def facts(self) -> dict[str, object]:
        """Returns what is saved beside the weights."""
        return {"classes": list(self.classes), "size": self.size, "widths": list(self.net.widths),
                "latents": self.net.latents, "calibration": list(self.calibration), "held_aside": self.held_aside}

    def content_hash(self) -> str:
        """Returns 16 hexadecimal digits over weights and facts."""
        weights = b"".join(v.contiguous().numpy().tobytes() for v in self.net.state_dict().values())
        return hash_json({"weights": sha256(weights), **self.facts()})

    def save(self, folder: str | Path) -> None:
        """Writes the weights as safetensors, then the facts as JSON: a folder with both is a whole model."""
        state = {k: v.detach().contiguous() for k, v in self.net.state_dict().items()}
        replace_file(Path(folder) / WEIGHTS, lambda p: save_file(state, p))
        write_json(Path(folder) / FACTS, self.facts())

    @classmethod
    def load(cls, folder: str | Path, *, size: int | None = None, n_classes: int | None = None) -> ShapeModel:
        """Returns the model saved in `folder`.

        Args:
            size, n_classes: what it must have been fitted for; None = anything.

        Raises:
            UserError: if there is none, or it was fitted for something else.
        """
        facts_file, weights_file = Path(folder) / FACTS, Path(folder) / WEIGHTS
        if not facts_file.is_file() or not weights_file.is_file():
            raise UserError(str(folder), rule=f"no shape model here ({FACTS} and {WEIGHTS})",
                            repair="run synth fit configs/shape.yaml until it ends; it resumes")
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        classes = tuple(facts["classes"])
        if n_classes not in (None, len(classes)) or size not in (None, facts["size"]):
            raise UserError(str(folder), rule=f"this shape model knows {len(classes)} classes at {facts['size']} px, "
                            f"asked for are {n_classes or len(classes)} at {size or facts['size']} px",
                            repair="fit one on these labels at this size")
        net = ShapeNet(len(classes), size=facts["size"], widths=tuple(facts["widths"]), latents=facts["latents"])
        net.load_state_dict(load_file(weights_file))
        return cls(net.eval().requires_grad_(False), classes, tuple(facts["calibration"]), facts["held_aside"],
                   Taught.load(Path(folder)))
