"""Fits the shape model on the one loop: few label maps, moved and bent anew at every step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from pydantic import Field, PositiveFloat, PositiveInt

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings, save_config
from synth.core.data import DataSettings
from synth.core.ema import Ema
from synth.core.files import claim_folder
from synth.core.loop import Batch, Batches, LoopSettings, Recipe, cosine, train
from synth.core.pairs import Arrays, ImageSet, PairSet
from synth.core.rng import choice, one_thread, sample_rng
from synth.core.space import labels_to_onehot
from synth.layouts.settings import LayoutSettings, Mirror
from synth.layouts.shape.model import FACTS, ShapeModel
from synth.layouts.shape.net import ShapeNet, divergence, reconstruction
from synth.layouts.warp import Affine, apply_mask, draw_affine

log = logging.getLogger(__name__)


class MoveSettings(Settings):
    """How label maps are moved in training; the words are those of `LayoutSettings`."""

    flip: Mirror = "none"
    scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25)
    rotate_deg: float = Field(20.0, ge=0, le=180)
    shift: float = Field(0.12, ge=0, le=0.5)
    elastic: float = Field(0.025, ge=0, le=0.05)

    def draw(self, rng: torch.Generator, *, strength: float = 1.0) -> Affine:
        """Returns random parameters, their ranges times `strength`."""
        low, high = (s**strength for s in self.scale)
        return draw_affine(rng, LayoutSettings(
            flip=self.flip, scale=(low, high), rotate_deg=strength * self.rotate_deg, shift=strength * self.shift,
            elastic=strength * self.elastic))


class ShapeSettings(Settings):
    """Everything about a shape model.

    Attributes:
        size: side of the label maps, px. widths: channels, each at half the resolution before. latents: of the code.
        kl_weight: of the divergence; 1 is the evidence bound.
        held_share: share of the groups that are kept out of training, to say what energy real maps have.
        mild: strength of the moves of those maps, as a share of `move`; n_moves: how often each is moved.
    """

    kind: Literal["shape"] = "shape"
    data: DataSettings = DataSettings()
    out: str | None = None
    size: int = Field(64, ge=16)
    widths: tuple[PositiveInt, ...] = Field((16, 32, 64, 64), min_length=1)
    latents: int = Field(32, ge=1)
    kl_weight: float = Field(1.0, ge=0)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(2e-3, gt=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    move: MoveSettings = MoveSettings()
    held_share: float = Field(0.2, gt=0, lt=1)
    mild: float = Field(0.5, ge=0, le=1)
    n_moves: int = Field(16, ge=1)
    loop: LoopSettings = LoopSettings(steps=1200)


class ShapeRecipe(Recipe):
    """Minimises the negative evidence bound per pixel of moved label maps."""

    def __init__(self, net: ShapeNet, settings: ShapeSettings) -> None:
        super().__init__()
        self.settings, self.nets = settings, {"shape": net}
        self.optimizers = {"shape": torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=1e-4, fused=True)}
        self.averages = {"shape": Ema(net, decay=settings.ema_decay)}
        self.n_classes = net.n_classes

    def lr_factor(self, progress: float) -> float:
        """Returns a cosine with a warm-up."""
        return cosine(progress)

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns how many label maps `batch` holds."""
        return {"maps_seen": len(batch["labels"])}

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Updates the network once on labels (B, S, S); returns both parts of the loss, nats per pixel, scalars."""
        onehot = labels_to_onehot(batch["labels"], self.n_classes)
        noise = torch.randn(len(onehot), self.settings.latents, device=onehot.device)
        logprob, mean, logvar = self.nets["shape"](onehot, noise)
        n = onehot[0, 0].numel()
        error, kl = reconstruction(onehot, logprob).mean() / n, divergence(mean, logvar).mean() / n
        self.descend(error + self.settings.kl_weight * kl, "shape", clip=1.0)
        self.averages["shape"].update(self.nets["shape"])
        return {"error": error.detach(), "kl": kl.detach()}


def map_batches(masks: np.ndarray, settings: ShapeSettings) -> Batches:
    """Returns the batches of random masks (N, S, S), each moved by a draw of its own."""
    def batches(step: int, rank: int, n_ranks: int) -> Batch:
        moved = []
        for k in range(rank, settings.batch_size, n_ranks):
            rng = sample_rng(settings.loop.seed, "map", step, k)
            row = choice(rng, len(masks))
            moved.append(apply_mask(masks[row], settings.move.draw(rng)))
        return {"labels": torch.from_numpy(np.stack(moved).astype(np.int64))}

    return batches


def held_aside(groups: tuple[str, ...], settings: ShapeSettings) -> np.ndarray:
    """Returns which maps are kept out of training, (N,) bool: whole groups, none where there are fewer than four."""
    names = sorted(set(groups))
    if len(names) < 4:
        return np.zeros(len(groups), bool)
    order = torch.randperm(len(names), generator=sample_rng(settings.loop.seed, "held"))
    held = {names[i] for i in order[:max(1, round(settings.held_share * len(names)))].tolist()}
    return np.array([group in held for group in groups])


def calibrate(net: ShapeNet, masks: np.ndarray, settings: ShapeSettings, *, classes: tuple[str, ...],
              n_held: int) -> ShapeModel:
    """Returns the model of `net` with the energies of masks (N, S, S), each mildly moved `n_moves` times."""
    model = ShapeModel(net, classes, (0.0,), n_held)
    moved = [apply_mask(mask, settings.move.draw(sample_rng(settings.loop.seed, "mild", i, j), strength=settings.mild))
             for i, mask in enumerate(masks) for j in range(settings.n_moves)]
    energies = model.energy(torch.from_numpy(np.stack(moved).astype(np.int64)))
    return ShapeModel(net, classes, tuple(sorted(float(f"{e:.6g}") for e in energies.tolist())), n_held)


def fit_shape(settings: ShapeSettings, labelled: PairSet, unlabelled: ImageSet | None, out: Path) -> ShapeModel:
    """Returns the shape model of the label maps of training pairs, saved in `out`; running again resumes.

    Raises:
        UserError: if no map shows foreground, `out` holds another run, there are images without masks, or the batch
            cannot be shared out evenly.
    """
    if unlabelled is not None:
        raise UserError("data.unlabelled", rule="a shape model learns from masks alone", repair="leave it out")
    n_ranks = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes
    if settings.batch_size % n_ranks:
        raise UserError(f"batch_size={settings.batch_size}", rule=f"it is no multiple of the {n_ranks} processes",
                        repair="change it or the number of processes")
    arrays = labelled.arrays(settings.size)
    there = ((arrays.masks > 0) & (arrays.masks != IGNORE)).any((1, 2))
    if not there.any():
        raise UserError(labelled.where, rule=f"no mask shows any foreground at {settings.size} px",
                        repair="give pairs with foreground, or a larger size")
    arrays = arrays.select(np.flatnonzero(there).tolist())
    identity = settings.model_dump(mode="json", exclude={"data", "out"})
    claim_folder(out, kind="shape", identity={"settings": identity, "labelled": arrays.fingerprint()})
    if not (out / FACTS).exists():
        save_config(settings, out / "config.yaml")
        model = _train(settings, arrays, out)
        if PartialState().is_main_process:
            model.save(out)
        PartialState().wait_for_everyone()
    return ShapeModel.load(out)


def _train(settings: ShapeSettings, arrays: Arrays, out: Path) -> ShapeModel:
    held = held_aside(arrays.groups, settings)
    if not held.any():
        log.warning("shape model: fewer than four groups, so that none is held aside: its percentiles are those of "
                    "training maps, and new real maps will look less plausible than they are")
    torch.manual_seed(settings.loop.seed)
    net = ShapeNet(arrays.info.n_classes, size=settings.size, widths=settings.widths, latents=settings.latents)
    recipe = ShapeRecipe(net, settings)
    train(recipe, map_batches(arrays.masks[~held], settings), out / "shape", settings.loop, label="shape model")
    fitted = recipe.averages["shape"].net.cpu().eval()
    with one_thread():
        return calibrate(fitted, arrays.masks[held if held.any() else ~held], settings, classes=arrays.info.classes,
                         n_held=int(held.sum()))
