"""The one recipe behind every method: supervised loss + w_syn * synthetic + lambda(t) * consistency over views."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from segtrain.losses import LOSSES, supervised
from segtrain.method import Method, View, member
from segtrain.models import build_model, check_size
from segtrain.settings import SegmentSettings
from segtrain.targets import TARGETS, Target, soft
from segtrain.topology import TOPOLOGIES
from segtrain.views import PERTURBATIONS, ChainWarp, augment_pairs, weak
from synth.core.loop import Batch, Recipe, poly
from synth.core.pairs import DataInfo
from synth.core.rng import sample_rng

log = logging.getLogger(__name__)
PATIENCE = 500


@dataclass(frozen=True)
class Shown:
    """What the student sees of one view, unit images (B, C, H, W), and what it shall predict there."""

    images: torch.Tensor
    target: Target


class _Slots:
    """The members that one view names, ready to call."""

    def __init__(self, view: View) -> None:
        self.perturb = [member(PERTURBATIONS, step, "perturb") for step in view.perturb]
        self.target = [member(TARGETS, step, "target") for step in view.target]
        self.loss = member(LOSSES, view.loss, "loss")
        self.weight = view.weight

    def narrow(self, target: Target) -> Target:
        """Returns what the operators make of `target`, one after another."""
        for operator in self.target:
            target = operator(target)
        return target

    def show(self, images: torch.Tensor, seeds: Sequence[int], target: Target, *, view: int) -> Shown:
        """Returns unit images (B, C, H, W) perturbed, row i by `seeds[i]`, and `target` moved alike."""
        warps = []
        for i, perturb in enumerate(self.perturb):
            images, warp = perturb(images, [sample_rng(seed, "view", view, i) for seed in seeds])
            warps.append(warp)
        return Shown(images, ChainWarp(tuple(warps)).apply(target))


def _optimizer(net: torch.nn.Module, settings: SegmentSettings) -> torch.optim.Optimizer:
    optim = settings.optim
    groups: list[dict] = [{"params": list(net.parameters())}]
    if settings.model.weights:
        given = {id(p) for p in net.encoder.parameters()}
        groups = [{"params": [p for p in net.parameters() if id(p) not in given]},
                  {"params": list(net.encoder.parameters()), "lr": optim.lr * optim.encoder_lr}]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay)


class SegmentRecipe(Recipe):
    """How a segmenter is trained by any method.

    Labelled and unlabelled images share one concatenated forward, hence, where a network has batch norm, its
    statistics; at lambda = 0 no unlabelled image is looked at and a step is a supervised one, bit for bit.
    """

    def __init__(self, settings: SegmentSettings, method: Method, *, info: DataInfo, has_synthetic: bool) -> None:
        super().__init__()
        self.settings, self.method, self.has_synthetic = settings, method, has_synthetic
        net = build_model(settings.model.name, info.channels, info.n_classes, settings.model, seed=settings.loop.seed)
        check_size(net, settings.size)
        self.topology = member(TOPOLOGIES, method.topology, "topology")(net)
        self.topology.predictor(method.predictor)
        self.nets, self.averages = self.topology.nets, self.topology.averages
        self.optimizers = {"student": _optimizer(net, settings)}
        self.views = [_Slots(view) for view in method.views]
        self.n_inert = 0
        for view in self.views:  # a threshold that these classes cannot miss is found here, not at step 1
            view.narrow(soft(torch.zeros(1, info.n_classes, 1, 1)))

    def predictor(self) -> torch.nn.Module:
        """Returns the network that the method predicts with."""
        return self.topology.predictor(self.method.predictor)

    def lr_factor(self, progress: float) -> float:
        """Returns the poly schedule at `progress`."""
        return poly(progress)

    def count(self, batch: Batch) -> dict[str, int]:
        """Returns how many supervised (labelled + synthetic) and how many unlabelled images the batch holds."""
        unlabelled = batch.get("unlabelled")
        return {"images_seen": len(batch["images"]), "unlabelled_seen": 0 if unlabelled is None else len(unlabelled)}

    def extra_state(self) -> dict:
        """Returns for how many steps the filter has been inert."""
        return {"n_inert": self.n_inert}

    def load_extra_state(self, state: dict) -> None:
        """Restores what `extra_state` returned."""
        self.n_inert = state["n_inert"]

    def step(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Returns the losses, and the share of pixels the filter kept, of one update."""
        lam = self.method.lambda_u.at(progress, self.settings.loop.steps) if self.views else 0.0
        rngs = [sample_rng(seed, "pair") for seed in batch["seeds"].tolist()]
        images, labels = augment_pairs(batch["images"], batch["labels"], rngs, self.settings.augment)
        shown = self._shown(batch) if lam else []
        logits = self.topology.students(torch.cat([images, *(s.images for s in shown)]))
        first, *rest = logits.split([len(images), *(len(s.images) for s in shown)])
        loss, logged = self._supervised(first, labels, batch["synthetic"])
        if shown:
            unlabelled = sum(v.weight * v.loss(x, s.target) for v, x, s in zip(self.views, rest, shown, strict=True))
            loss = loss + lam * unlabelled
            logged |= {"loss_unlabelled": unlabelled.detach(), "lambda": torch.tensor(lam), **self._stats(shown)}
        optimizer = self.optimizers["student"]
        optimizer.zero_grad(set_to_none=True)
        self.backward(loss)
        optimizer.step()
        self.topology.after_step()
        return {"loss": loss.detach(), **logged}

    def _supervised(self, logits: torch.Tensor, labels: torch.Tensor, made: torch.Tensor) -> tuple:
        # Means over each kind, so that w_syn weighs a synthetic batch against a labelled one whatever the share.
        zero = logits.sum() * 0
        real = supervised(logits[~made], labels[~made]) if (~made).any() else zero
        synthetic = supervised(logits[made], labels[made]) if made.any() else zero
        logged = {"loss_labelled": real.detach()}
        if self.has_synthetic:
            logged["loss_synthetic"] = synthetic.detach()
        return real + self.settings.w_syn * synthetic, logged

    def _shown(self, batch: Batch) -> list[Shown]:
        seeds = batch["unlabelled_seeds"].tolist()
        clean, _ = weak(batch["unlabelled"], [sample_rng(s, "weak") for s in seeds], self.settings.augment.geometry)
        said = soft(self.topology.teacher(clean))
        return [view.show(clean, seeds, view.narrow(said), view=i) for i, view in enumerate(self.views)]

    def _stats(self, shown: list[Shown]) -> dict[str, torch.Tensor]:
        stats: dict[str, torch.Tensor] = {}
        for i, view in enumerate(shown):
            stats |= {key if i == 0 else f"{key}_{i}": value for key, value in view.target.stats.items()}
        if "kept" in stats:
            inert = not 0.02 <= float(stats["kept"]) <= 0.98
            self.n_inert = self.n_inert + 1 if inert else 0
            if self.n_inert == PATIENCE:
                log.warning("for %d steps the filter has kept %.3g of the pixels: it decides nothing; change its tau",
                            PATIENCE, float(stats["kept"]))
        return stats
